//! What the model is told. No database and no clock here: the same settings and messages give the same prompt.

use crate::api::tenant::{AssistantSettings, MessageRole, Settings};
use crate::ids::MessageId;
use crate::providers::{ChatMessage, ChatRole, Content, Image, Part};

/// What an image counts as, in characters of text, where the provider does not say what it cost: about a thousand tokens. A photo is some
/// 750 to 1,100 at OpenAI, at most 1,600 at Anthropic and 258 for each of its tiles at Gemini.
const IMAGE_CHARACTERS: usize = 4_000;

/// Something said earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spoken {
    pub(super) role: MessageRole,
    pub(super) content: String,
    /// The message, if images came with it.
    pub(super) with_images: Option<MessageId>,
    /// Those of them that the model is shown again.
    pub(super) images: Vec<Image>,
}

/// The whole prompt: instructions, the assistant's own if it has any, the last of what was said, and the question with its
/// images.
pub(super) fn build(
    settings: &Settings,
    assistant: Option<&AssistantSettings>,
    history: Vec<Spoken>,
    question: &str,
    images: Vec<Image>,
) -> Vec<ChatMessage> {
    let skipped = history.len().saturating_sub(settings.history_length.into());
    let mut messages = vec![ChatMessage::text(ChatRole::System, system(settings, assistant))];
    for spoken in history.into_iter().skip(skipped).filter(|spoken| !spoken.content.is_empty()) {
        let role = match spoken.role {
            MessageRole::User => ChatRole::User,
            MessageRole::Assistant => ChatRole::Assistant,
        };
        push(&mut messages, role, spoken.images, &spoken.content);
    }
    push(&mut messages, ChatRole::User, images, question);
    messages
}

/// Many models refuse a conversation that does not begin with the user and then alternate. It may not where the
/// window cuts it in the middle, or where a question was never answered: an answer without its question is left out,
/// and questions in a row become one. Images stand before the words about them, where models see them best.
fn push(messages: &mut Vec<ChatMessage>, role: ChatRole, images: Vec<Image>, text: &str) {
    match messages.last_mut() {
        Some(last) if last.role == role => match &mut last.content {
            Content::Text(said) if images.is_empty() => {
                said.push_str("\n\n");
                said.push_str(text);
            }
            Content::Text(said) => {
                let said = Part::Text(std::mem::take(said));
                last.content = Content::Parts(std::iter::once(said).chain(parts(images, text)).collect());
            }
            Content::Parts(said) => said.extend(parts(images, text)),
        },
        Some(last) if last.role == ChatRole::System && role == ChatRole::Assistant => {}
        // Many servers take texts only where no image is, so a text stays one.
        _ if images.is_empty() => messages.push(ChatMessage::text(role, text)),
        _ => {
            let content = Content::Parts(parts(images, text).collect());
            messages.push(ChatMessage { role, content, ..ChatMessage::default() });
        }
    }
}

fn parts(images: Vec<Image>, text: &str) -> impl Iterator<Item = Part> {
    images.into_iter().map(Part::Image).chain([Part::Text(text.to_owned())])
}

fn system(settings: &Settings, assistant: Option<&AssistantSettings>) -> String {
    let own = assistant.map(|assistant| assistant.prompt.trim()).filter(|prompt| !prompt.is_empty());
    let mut system = own.unwrap_or_else(|| settings.system_prompt.trim()).to_owned();
    if !system.is_empty() {
        system.push_str("\n\n");
    }
    let branding = &settings.branding;
    system.push_str(&format!("Your name is {}.", branding.assistant_name.trim()));
    let voice = branding.voice.trim();
    if !voice.is_empty() {
        system.push_str(&format!(" Your tone: {voice}."));
    }
    system
}

/// The title of a conversation: the beginning of its first question, on one line.
pub(super) fn title(question: &str) -> String {
    let line = question.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(80).collect::<String>().trim_end().to_owned()
}

/// The number of characters of a prompt, for estimating its tokens. An image counts as many.
pub(super) fn length(messages: &[ChatMessage]) -> usize {
    let texts = messages.iter().flat_map(|message| message.content.texts()).map(|text| text.chars().count());
    let images = messages.iter().map(|message| message.content.images().count());
    texts.sum::<usize>() + images.sum::<usize>() * IMAGE_CHARACTERS
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::tenant::Branding;
    use crate::providers::ImageSource;

    pub(in crate::chat) fn settings() -> Settings {
        Settings {
            system_prompt: " You help customers of Northwind.\n".to_owned(),
            history_length: 4,
            welcome_message: String::new(),
            error_message: "Sorry.".to_owned(),
            branding: Branding { voice: "warm and brief".to_owned(), ..Branding::sample() },
            ..Settings::sample()
        }
    }

    fn spoken(said: &[(char, &str)]) -> Vec<Spoken> {
        let role = |who| if who == 'u' { MessageRole::User } else { MessageRole::Assistant };
        let said = said.iter().map(|&(who, text)| Spoken {
            role: role(who),
            content: text.to_owned(),
            with_images: None,
            images: vec![],
        });
        said.collect()
    }

    fn image(base64: &str) -> Image {
        let source = ImageSource::Data { media_type: "image/png".to_owned(), base64: Arc::new(base64.to_owned()) };
        Image { source, detail: None }
    }

    fn built(settings: &Settings, said: &[(char, &str)]) -> Vec<(ChatRole, String)> {
        let messages = build(settings, None, spoken(said), "question", vec![]);
        messages.iter().skip(1).map(|message| (message.role, message.content.texts().collect())).collect()
    }

    #[test]
    fn the_system_prompt_has_name_and_voice() {
        let messages = build(&settings(), None, vec![], "Hi", vec![]);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].role, ChatRole::System);
        let text = |at: usize| messages[at].content.texts().collect::<String>();
        assert_eq!(text(0), "You help customers of Northwind.\n\nYour name is Nora. Your tone: warm and brief.");
        assert_eq!((messages[1].role, text(1).as_str()), (ChatRole::User, "Hi"));
        let mut plain = settings();
        plain.system_prompt = String::new();
        plain.branding.voice = String::new();
        let built = build(&plain, None, vec![], "Hi", vec![]);
        assert_eq!(built[0].content, Content::Text("Your name is Nora.".to_owned()));
    }

    #[test]
    fn only_the_last_messages_are_shown() {
        let said = [('u', "1"), ('a', "2"), ('u', "3"), ('a', "4"), ('u', "5"), ('a', "6")];
        let texts: Vec<_> = built(&settings(), &said).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["3", "4", "5", "6", "question"]);
        let none = Settings { history_length: 0, ..settings() };
        assert_eq!(built(&none, &said), [(ChatRole::User, "question".to_owned())]);
    }

    #[test]
    fn roles_alternate_beginning_with_the_user() {
        let said = [('a', "cut off"), ('u', "1"), ('u', "2"), ('a', "3"), ('a', ""), ('u', "4")];
        let all = Settings { history_length: 100, ..settings() };
        let expected = [(ChatRole::User, "1\n\n2"), (ChatRole::Assistant, "3"), (ChatRole::User, "4\n\nquestion")];
        assert_eq!(built(&all, &said), expected.map(|(role, text)| (role, text.to_owned())));
    }

    #[test]
    fn images_stand_before_their_words_and_only_where_there_are_any() {
        let text = |text: &str| Part::Text(text.to_owned());
        let mut history = spoken(&[('u', "look"), ('a', "nice"), ('u', "unanswered")]);
        history[0].images = vec![image("a"), image("b")];
        let messages = build(&settings(), None, history, "and this?", vec![image("c")]);
        let contents: Vec<_> = messages.into_iter().skip(1).map(|message| message.content).collect();
        let first = Content::Parts(vec![Part::Image(image("a")), Part::Image(image("b")), text("look")]);
        let last = Content::Parts(vec![text("unanswered"), Part::Image(image("c")), text("and this?")]);
        assert_eq!(contents, [first, Content::Text("nice".to_owned()), last]);
        // A question behind one with images that was never answered.
        let mut history = spoken(&[('u', "look")]);
        history[0].images = vec![image("a")];
        let messages = build(&settings(), None, history, "well?", vec![]);
        assert_eq!(messages[1].content, Content::Parts(vec![Part::Image(image("a")), text("look"), text("well?")]));
    }

    #[test]
    fn an_image_counts_as_much_text() {
        let words = build(&settings(), None, vec![], "what is it?", vec![]);
        let images = build(&settings(), None, vec![], "what is it?", vec![image("QUJD"), image("QUJD")]);
        assert_eq!(length(&images), length(&words) + 2 * IMAGE_CHARACTERS);
    }

    #[test]
    fn titles_are_short_and_of_one_line() {
        assert_eq!(title("  When do\nyou   open? "), "When do you open?");
        assert_eq!(title(&"ä".repeat(100)).chars().count(), 80);
    }
}
