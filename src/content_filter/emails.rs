//! Finds e-mail addresses: a name, an `@`, and a domain that ends in letters.

use std::collections::VecDeque;

use super::characters::Seen;
use super::{Kind, Span};

/// The longest name before the `@`.
const MOST_LOCAL: usize = 64;
/// The same where no spaces are written between words, so that all before it looks like a part of it.
const MOST_UNSPACED: usize = 12;
/// The longest domain.
const MOST_DOMAIN: usize = 253;
/// What names of files end in, and no domain does: `icon@2x.png`.
const FILES: &[&str] = &[
    "png", "jpg", "jpeg", "gif", "webp", "svg", "js", "ts", "jsx", "tsx", "css", "scss", "html", "json", "yaml", "yml",
    "toml", "xml", "txt", "pdf", "exe", "dll", "tar", "gz", "tgz", "whl", "min",
];

/// What is before an `@`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Anybody,
    /// `git@HOST:` is not an address of anybody's, but of every repository on some servers.
    Git,
    /// `this@Outer.field`, as some programming languages have it.
    This,
}

#[derive(Debug, Default)]
pub(super) struct Emails {
    /// The characters in a row, up to here, that a name may consist of, and where each begins.
    local: VecDeque<(usize, char)>,
    /// Where the address before the last `@` begins, and what is there instead if it is none.
    address: Option<(usize, Name)>,
    /// What came since the `@`: characters, and where each ends.
    domain: Vec<(usize, char)>,
    now: usize,
}

impl Emails {
    /// All that begins before is known.
    pub(super) fn undecided(&self) -> usize {
        let local = self.local.front().map(|(at, _)| *at);
        self.address.map(|(at, _)| at).or(local).unwrap_or(self.now)
    }

    pub(super) fn step(&mut self, at: usize, end: usize, seen: Seen, spans: &mut Vec<Span>) {
        self.now = end;
        let c = match seen {
            Seen::Character(c) => c,
            Seen::Invisible => return,
            Seen::Break => return self.finish(spans),
        };
        let of_domain = c.is_alphanumeric() || c == '-' || c == '.';
        if self.address.is_some() {
            if of_domain && self.domain.len() < MOST_DOMAIN {
                self.domain.push((end, c));
            } else {
                self.over(c, spans);
            }
        }
        if c == '@' {
            if let Some((start, _)) = self.local.front().copied()
                && self.local.back().is_some_and(|(_, c)| *c != '.')
            {
                let name: String = self.local.iter().map(|(_, c)| *c).take(5).collect();
                let name = match name.as_str() {
                    "git" => Name::Git,
                    "this" => Name::This,
                    _ => Name::Anybody,
                };
                self.address = Some((start, name));
            }
            self.local.clear();
        } else if c.is_alphanumeric() || (!self.local.is_empty() && "._%+-'~\\".contains(c)) {
            // What Markdown escapes belongs to a name; of other escapes it is what comes behind them.
            if c != '_' && self.local.back().is_some_and(|(_, c)| *c == '\\') {
                self.local.clear();
                if !c.is_alphanumeric() {
                    return;
                }
            }
            // Where no spaces are written, an address begins with its first letter of another script.
            if c.is_ascii_alphanumeric() && self.local.back().is_some_and(|(_, c)| is_unspaced(*c)) {
                self.local.clear();
            }
            let most = if is_unspaced(c) { MOST_UNSPACED } else { MOST_LOCAL };
            while self.local.len() >= most {
                self.local.pop_front();
            }
            self.local.push_back((at, c));
        } else {
            self.local.clear();
        }
    }

    pub(super) fn finish(&mut self, spans: &mut Vec<Span>) {
        self.over(' ', spans);
        self.local.clear();
    }

    /// The domain is over, `next` is behind it.
    fn over(&mut self, next: char, spans: &mut Vec<Span>) {
        let Some((start, name)) = self.address.take() else { return };
        let domain = std::mem::take(&mut self.domain);
        if name == Name::This || (name == Name::Git && next == ':') {
            return;
        }
        if let Some(length) = domain_length(&domain)
            && let Some((end, _)) = domain.get(length.saturating_sub(1))
        {
            spans.push(Span { start, end: *end, kind: Kind::Email });
        }
    }
}

/// Whether a letter is of a script that puts no spaces between words.
fn is_unspaced(c: char) -> bool {
    u32::from(c) >= 0x0E00
}

/// How many of the characters, at most, are a domain.
fn domain_length(characters: &[(usize, char)]) -> Option<usize> {
    let (mut labels, mut found, mut at) = (0, None, 0);
    for label in characters.split(|(_, c)| *c == '.') {
        let hyphens = label.iter().rev().take_while(|(_, c)| *c == '-').count();
        let bare = label.get(..label.len() - hyphens).unwrap_or_default();
        // Where no spaces are written, it ends with the script.
        let begins_ascii = bare.first().is_some_and(|(_, c)| c.is_ascii());
        let more = bare.iter().position(|(_, c)| begins_ascii && is_unspaced(*c));
        let bare = more.and_then(|at| bare.get(..at)).unwrap_or(bare);
        if bare.first().is_none_or(|(_, c)| *c == '-') {
            break;
        }
        let text: String = bare.iter().flat_map(|(_, c)| c.to_lowercase()).collect();
        let letters = text.starts_with("xn--") || text.chars().all(char::is_alphabetic);
        // `anna@example.com.pdf` is a file with an address in its name.
        if labels > 0 && letters && text.chars().count() >= 2 && !FILES.contains(&text.as_str()) {
            found = Some(at + bare.len());
        }
        if hyphens > 0 || more.is_some() {
            break;
        }
        labels += 1;
        at += label.len() + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Option<String> {
        let characters: Vec<_> = text.chars().enumerate().collect();
        domain_length(&characters).map(|length| text.chars().take(length).collect())
    }

    #[test]
    fn a_domain_ends_in_letters() {
        assert_eq!(domain("example.com").as_deref(), Some("example.com"));
        assert_eq!(domain("mail.example.co.uk.").as_deref(), Some("mail.example.co.uk"));
        assert_eq!(domain("example.com-").as_deref(), Some("example.com"));
        assert_eq!(domain("example.com.2024").as_deref(), Some("example.com"));
        assert_eq!(domain("münchen.example").as_deref(), Some("münchen.example"));
        assert_eq!(domain("example.xn--p1ai").as_deref(), Some("example.xn--p1ai"));
        assert_eq!(domain("example.jpです").as_deref(), Some("example.jp"));
        assert_eq!(domain("例え.テスト").as_deref(), Some("例え.テスト"));
        assert_eq!(domain("example.com.pdf").as_deref(), Some("example.com"));
        assert_eq!(domain("example.com.tar.gz").as_deref(), Some("example.com"));
        for text in ["localhost", "", ".com", "18.2.0", "2x.png", "2x.min.js", "a..com", "-a.com", "w.T"] {
            assert_eq!(domain(text), None, "{text}");
        }
    }
}
