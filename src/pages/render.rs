//! A page from a tenant's settings: the template filled in, compressed, and the policy that goes with it.

use std::collections::BTreeSet;

use askama::Template;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::assets::{Assets, MODULES, compress};
use super::texts::{Language, PageTexts, Texts};
use super::theme::Theme;
use super::{Page, PageError};
use crate::access::VisitorLimits;
use crate::api::tenant::{Settings, VisitorSettings};

/// A page that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The HTML, compressed with gzip.
    pub compressed: Bytes,
    /// The `Content-Security-Policy`.
    pub policy: String,
}

/// What the button on a client's own site looks like.
#[derive(Debug, Clone, Serialize)]
pub struct WidgetLook {
    name: String,
    color: String,
    on_color: String,
    open_label: String,
    close_label: String,
}

#[derive(Template)]
#[template(path = "chat/page.html")]
struct PageTemplate<'a> {
    texts: &'a PageTexts,
    embedded: bool,
    name: &'a str,
    slug: &'a str,
    assets: &'a str,
    modules: &'a [&'a str],
    theme: &'a str,
    logo: &'a str,
    /// The tag of what the tenant writes and its assistants answer; the page's own words may be of another.
    language: &'a str,
    welcome: &'a str,
    suggestions: &'a [String],
    /// Whether there are several assistants to choose from. Which, is told to those who are signed in only.
    several: bool,
    /// Whether any of them accepts images. Whether the plan has that, is told to those who are signed in only.
    images: bool,
    notice: &'a str,
    privacy_url: Option<&'a str>,
    config: &'a str,
}

#[derive(Template)]
#[template(path = "chat/unavailable.html")]
struct UnavailableTemplate<'a> {
    language: &'a str,
    title: &'a str,
    text: &'a str,
    assets: &'a str,
}

#[derive(Template)]
#[template(path = "chat/icon.svg", escape = "html")]
struct IconTemplate<'a> {
    color: &'a str,
    on_color: &'a str,
    font: &'a str,
    letter: &'a str,
}

/// What the scripts need to know.
#[derive(Serialize)]
struct ScriptConfig<'a> {
    slug: &'a str,
    name: &'a str,
    logo: &'a str,
    language: &'a str,
    visitors: bool,
    sign_in: bool,
    max_message_length: u32,
    images: bool,
    image_origins: &'a [String],
    allowed_origins: &'a [String],
    texts: &'a std::collections::BTreeMap<String, String>,
}

/// Everything that is shown of a tenant to everybody.
pub(super) fn page(slug: &str, settings: &Settings, texts: &Texts, assets: &Assets) -> Result<Page, PageError> {
    let branding = &settings.branding;
    let language = texts.of(&branding.language);
    let theme = Theme::new(&branding.primary_color, &branding.font);
    let letter: String = branding.assistant_name.trim().chars().take(1).flat_map(char::to_uppercase).collect();
    let icon = IconTemplate {
        color: &theme.fill,
        on_color: &theme.on_fill,
        font: theme.font,
        letter: if letter.is_empty() { "•" } else { &letter },
    };
    let own_logo = branding.logo_url.as_deref().and_then(https);
    let maker = Maker { slug, settings, language, theme: theme.css(), own_logo, assets: assets.path() };
    Ok(Page {
        page: maker.make(false)?,
        embedded: maker.make(true)?,
        icon: icon.render()?,
        widget: WidgetLook {
            name: branding.assistant_name.clone(),
            color: theme.fill.clone(),
            on_color: theme.on_fill.clone(),
            open_label: language.script.get("open").cloned().unwrap_or_default(),
            close_label: language.page.close_chat.clone(),
        },
        allowed_origins: settings.widget.allowed_origins.clone(),
        visitors: limits(&settings.visitors),
    })
}

fn limits(visitors: &VisitorSettings) -> Option<VisitorLimits> {
    let VisitorSettings { enabled, questions_per_day, questions_per_visitor } = *visitors;
    enabled.then_some(VisitorLimits { questions_per_day, questions_per_visitor })
}

struct Maker<'a> {
    slug: &'a str,
    settings: &'a Settings,
    language: &'a Language,
    theme: String,
    own_logo: Option<Url>,
    assets: String,
}

impl Maker<'_> {
    fn make(&self, embedded: bool) -> Result<Rendered, PageError> {
        let Self { slug, settings, language, theme, own_logo, assets } = self;
        let branding = &settings.branding;
        let images = settings.assistants.iter().any(|assistant| assistant.accepts_images);
        let logo = own_logo.as_ref().map_or_else(|| format!("/c/{slug}/icon.svg"), Url::to_string);
        let nobody: &[String] = &[];
        let framed_by = if embedded { settings.widget.allowed_origins.as_slice() } else { nobody };
        let config = ScriptConfig {
            slug,
            name: &branding.assistant_name,
            logo: &logo,
            language: &branding.language,
            visitors: settings.visitors.enabled,
            sign_in: true,
            max_message_length: settings.max_message_length,
            images,
            image_origins: &branding.image_origins,
            allowed_origins: framed_by,
            texts: &language.script,
        };
        let html = PageTemplate {
            texts: &language.page,
            embedded,
            name: &branding.assistant_name,
            slug,
            assets,
            modules: MODULES,
            theme,
            logo: &logo,
            language: &branding.language,
            welcome: &settings.welcome_message,
            suggestions: &branding.suggestions,
            several: settings.assistants.len() > 1,
            images,
            notice: &branding.notice,
            privacy_url: branding.privacy_url.as_deref().filter(|url| https(url).is_some()),
            config: &data(&config),
        }
        .render()?;
        let logo = own_logo.as_ref().map(|url| url.origin().ascii_serialization());
        let images: BTreeSet<_> = branding.image_origins.iter().cloned().chain(logo).collect();
        Ok(Rendered { compressed: compress(html.as_bytes())?, policy: policy(theme, &images, framed_by) })
    }
}

fn https(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| url.scheme() == "https" && url.host().is_some())
}

/// JSON that may stand between script tags: nothing in it ends them, or begins a comment.
fn data(config: &ScriptConfig<'_>) -> String {
    // This type always becomes JSON: it is texts and numbers.
    let json = serde_json::to_string(config).unwrap_or_default();
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// What the page may do: run and load our own files, speak to us, load images from where the tenant says and show those that its own
/// scripts have (which they fetch with a token, as no image's address could), and be framed by whom it says. Everything else is forbidden, above all scripts that stand in the page and texts that become markup.
fn policy(style: &str, images: &BTreeSet<String>, framed_by: &[String]) -> String {
    let style = STANDARD.encode(Sha256::digest(style));
    let images: String = images.iter().flat_map(|origin| [" ", origin]).collect();
    let framed_by = if framed_by.is_empty() { "'none'".to_owned() } else { framed_by.join(" ") };
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-{style}'; img-src 'self' blob:{images}; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {framed_by}; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

/// The page in the place of one that cannot be shown.
pub(super) fn unavailable(temporarily: bool, language: &Language, assets: &Assets) -> Result<Rendered, PageError> {
    let texts = &language.unavailable;
    let (title, text) = match temporarily {
        true => (&texts.later_title, &texts.later),
        false => (&texts.nothing_title, &texts.nothing),
    };
    let html =
        UnavailableTemplate { language: &language.page.language, title, text, assets: &assets.path() }.render()?;
    Ok(Rendered {
        compressed: compress(html.as_bytes())?,
        policy: "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::api::tenant::{Branding, WidgetSettings};

    fn settings() -> Settings {
        Settings {
            system_prompt: "canary-of-the-prompt".to_owned(),
            models: vec!["canary-of-the-models".to_owned()],
            max_tokens: 1,
            history_length: 1,
            welcome_message: "Welcome".to_owned(),
            error_message: String::new(),
            branding: Branding {
                primary_color: "#1d7a6b".to_owned(),
                language: "de-CH".to_owned(),
                voice: "canary-of-the-voice".to_owned(),
                font: "serif".to_owned(),
                ..Branding::sample()
            },
            widget: WidgetSettings { allowed_origins: vec!["https://shop.example".to_owned()] },
            ..Settings::sample()
        }
    }

    fn made(settings: &Settings) -> (Page, String) {
        let page = super::page("acme", settings, &Texts::load().unwrap(), &Assets::load().unwrap()).unwrap();
        let mut html = String::new();
        flate2::read::GzDecoder::new(&*page.page.compressed).read_to_string(&mut html).unwrap();
        (page, html)
    }

    #[test]
    fn a_page_says_what_everybody_may_know() {
        let (page, html) = made(&settings());
        assert!(html.contains("Welcome") && html.contains("lang=\"de\"") && html.contains("Neue Unterhaltung"));
        assert!(!html.contains("canary-of"), "{html}");
        assert!(page.page.policy.contains("frame-ancestors 'none'"), "{}", page.page.policy);
        assert!(page.embedded.policy.contains("frame-ancestors https://shop.example;"), "{}", page.embedded.policy);
        assert!(!html.contains("shop.example"));
        assert_eq!(page.visitors, None);
    }

    #[test]
    fn a_choice_is_offered_where_there_is_one_and_names_nobody() {
        let mut settings = settings();
        assert!(!made(&settings).1.contains("id=\"assistant\""));
        for name in ["canary-of-a", "canary-of-b"] {
            let made =
                serde_json::json!({ "name": name, "title": "canary-of-a-title", "prompt": "canary-of-a-prompt" });
            settings.assistants.push(serde_json::from_value(made).unwrap());
        }
        let (_, html) = made(&settings);
        assert!(html.contains("<label for=\"assistant\">Assistent</label>") && !html.contains("canary-of"), "{html}");
    }

    #[test]
    fn images_are_offered_where_an_assistant_accepts_them() {
        let mut settings = settings();
        let made_of = |accepts: bool| serde_json::json!({ "name": "a", "title": "A", "accepts_images": accepts });
        for accepts in [false, true] {
            settings.assistants = vec![serde_json::from_value(made_of(accepts)).unwrap()];
            let (_, html) = made(&settings);
            assert_eq!(
                (html.contains("id=\"attach\""), html.contains("\"images\":true")),
                (accepts, accepts),
                "{html}"
            );
        }
    }

    #[test]
    fn what_a_tenant_writes_is_text() {
        let hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--";
        let mut settings = settings();
        settings.welcome_message = hostile.to_owned();
        settings.branding.assistant_name = hostile.to_owned();
        settings.branding.suggestions = vec![hostile.to_owned()];
        settings.branding.notice = hostile.to_owned();
        settings.branding.language = hostile.to_owned();
        settings.branding.primary_color = hostile.to_owned();
        settings.branding.font = hostile.to_owned();
        settings.branding.logo_url = Some(format!("https://x.example/{hostile}"));
        settings.branding.privacy_url = Some("javascript:alert(3)".to_owned());
        let (page, html) = made(&settings);
        assert!(!html.contains("<script>") && !html.contains("<img src=x") && !html.contains("<!--"), "{html}");
        assert!(!html.contains("javascript:"));
        // The scripts and the data that the template has, and no more.
        assert_eq!((html.matches("<script").count(), html.matches("</script").count()), (3, 3));
        assert!(!page.icon.contains("<script") && !page.icon.contains("<img"));
        assert!(page.page.policy.contains("img-src 'self' blob: https://x.example;"), "{}", page.page.policy);
    }

    #[test]
    fn a_logo_is_loaded_over_tls_only() {
        let mut settings = settings();
        settings.branding.logo_url = Some("http://x.example/logo.png".to_owned());
        let (page, html) = made(&settings);
        assert!(!html.contains("x.example") && !page.page.policy.contains("x.example"));
    }
}
