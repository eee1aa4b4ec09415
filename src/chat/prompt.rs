//! What the model is told. No database and no clock here: the same settings and messages give the same prompt.

use crate::api::tenant::{AssistantSettings, MessageRole, Settings};
use crate::providers::{ChatMessage, ChatRole, Content};

/// Something said earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spoken {
    pub(super) role: MessageRole,
    pub(super) content: String,
}

/// The whole prompt: instructions, the assistant's own if it has any, the last of what was said, and the question.
pub(super) fn build(
    settings: &Settings,
    assistant: Option<&AssistantSettings>,
    history: Vec<Spoken>,
    question: &str,
) -> Vec<ChatMessage> {
    let skipped = history.len().saturating_sub(settings.history_length.into());
    let mut messages = vec![ChatMessage::text(ChatRole::System, system(settings, assistant))];
    for spoken in history.into_iter().skip(skipped).filter(|spoken| !spoken.content.is_empty()) {
        let role = match spoken.role {
            MessageRole::User => ChatRole::User,
            MessageRole::Assistant => ChatRole::Assistant,
        };
        push(&mut messages, role, &spoken.content);
    }
    push(&mut messages, ChatRole::User, question);
    messages
}

/// Many models refuse a conversation that does not begin with the user and then alternate. It may not where the
/// window cuts it in the middle, or where a question was never answered: an answer without its question is left out,
/// and questions in a row become one.
fn push(messages: &mut Vec<ChatMessage>, role: ChatRole, content: &str) {
    match messages.last_mut() {
        Some(ChatMessage { role: last, content: Content::Text(text), .. }) if *last == role => {
            text.push_str("\n\n");
            text.push_str(content);
        }
        Some(last) if last.role == ChatRole::System && role == ChatRole::Assistant => {}
        _ => messages.push(ChatMessage::text(role, content)),
    }
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

/// The number of characters of a prompt, for estimating its tokens.
pub(super) fn length(messages: &[ChatMessage]) -> usize {
    messages.iter().flat_map(|message| message.content.texts()).map(|text| text.chars().count()).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::tenant::Branding;

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
        said.iter().map(|&(who, text)| Spoken { role: role(who), content: text.to_owned() }).collect()
    }

    fn built(settings: &Settings, said: &[(char, &str)]) -> Vec<(ChatRole, String)> {
        let messages = build(settings, None, spoken(said), "question");
        messages.iter().skip(1).map(|message| (message.role, message.content.texts().collect())).collect()
    }

    #[test]
    fn the_system_prompt_has_name_and_voice() {
        let messages = build(&settings(), None, vec![], "Hi");
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].role, ChatRole::System);
        let text = |at: usize| messages[at].content.texts().collect::<String>();
        assert_eq!(text(0), "You help customers of Northwind.\n\nYour name is Nora. Your tone: warm and brief.");
        assert_eq!((messages[1].role, text(1).as_str()), (ChatRole::User, "Hi"));
        let mut plain = settings();
        plain.system_prompt = String::new();
        plain.branding.voice = String::new();
        assert_eq!(build(&plain, None, vec![], "Hi")[0].content, Content::Text("Your name is Nora.".to_owned()));
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
    fn titles_are_short_and_of_one_line() {
        assert_eq!(title("  When do\nyou   open? "), "When do you open?");
        assert_eq!(title(&"ä".repeat(100)).chars().count(), 80);
    }
}
