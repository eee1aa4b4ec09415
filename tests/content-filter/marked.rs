//! The texts of the tables beside this file, with what is to be masked between marks: `⟦card number⟧`, `⟨e-mail address⟩`,
//! `⟪telephone number⟫`. The filter's own tests and those over the wire read them in the same way.

pub(crate) const SENSITIVE: &str = include_str!("sensitive.txt");
pub(crate) const HARMLESS: &str = include_str!("harmless.txt");

/// The texts of a table: `\n` is a new line, `\u{a0}` a character by its number.
pub(crate) fn texts(table: &str) -> Vec<String> {
    let lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with("# "));
    lines
        .map(|line| {
            let mut parts = line.split("\\u{");
            let mut text = parts.next().unwrap().to_owned();
            for part in parts {
                let (code, rest) = part.split_once('}').unwrap();
                text.push(char::from_u32(u32::from_str_radix(code, 16).unwrap()).unwrap());
                text.push_str(rest);
            }
            text.replace("\\n", "\n")
        })
        .collect()
}

/// A text with marks, as it comes and as it is to go out.
pub(crate) fn marked(text: &str) -> (String, String) {
    let (mut plain, mut masked, mut inside) = (String::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '⟦' => masked.push_str("[card number]"),
            '⟨' => masked.push_str("[e-mail address]"),
            '⟪' => masked.push_str("[phone number]"),
            '⟧' | '⟩' | '⟫' => {}
            _ => {
                plain.push(c);
                if !inside {
                    masked.push(c);
                }
            }
        }
        inside = matches!(c, '⟦' | '⟨' | '⟪') || (inside && !matches!(c, '⟧' | '⟩' | '⟫'));
    }
    (plain, masked)
}
