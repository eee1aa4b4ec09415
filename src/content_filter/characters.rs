//! Characters as a reader sees them: digits of any script, and spaces, hyphens and full-width forms of any width, are
//! those of ASCII; what is not seen at all is not there.

/// The zeros of scripts whose ten digits follow each other.
const ZEROS: [u32; 37] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6, 0x0E50,
    0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50,
    0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0,
];

/// How many invisible characters in a row may stand inside something that is recognised.
const MOST_INVISIBLE: u32 = 8;

/// A character as the finders are told it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen {
    /// What it counts as.
    Character(char),
    /// Nothing. It may stand inside something that is recognised.
    Invisible,
    /// Nothing, once too often in a row: whatever was begun is over.
    Break,
}

/// Reads a text once, for all finders.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// How many invisible characters have come in a row.
    invisible: u32,
}

impl Reader {
    /// The next character.
    pub(super) fn see(&mut self, c: char) -> Seen {
        match fold(c) {
            Some(c) => {
                self.invisible = 0;
                Seen::Character(c)
            }
            None => {
                self.invisible = self.invisible.saturating_add(1);
                if self.invisible > MOST_INVISIBLE { Seen::Break } else { Seen::Invisible }
            }
        }
    }
}

/// What a character counts as; `None` if it is invisible.
fn fold(c: char) -> Option<char> {
    if c.is_ascii() {
        return (c != '\0').then_some(c);
    }
    let code = u32::from(c);
    Some(match code {
        // Soft hyphens, joiners, marks of direction, variation selectors.
        0x00AD
        | 0x034F
        | 0x061C
        | 0x180E
        | 0x200B..=0x200F
        | 0x202A..=0x202E
        | 0x2060..=0x206F
        | 0xFE00..=0xFE0F
        | 0xFEFF => return None,
        0x00A0 | 0x1680 | 0x2000..=0x200A | 0x202F | 0x205F | 0x3000 => ' ',
        0x2010..=0x2015 | 0x2043 | 0x2212 | 0x30FC | 0xFE58 | 0xFE63 => '-',
        0x2024 => '.',
        0x2044 | 0x2215 => '/',
        0xFE6B => '@',
        0xFF01..=0xFF5E => char::from_u32(code - 0xFEE0).unwrap_or(c),
        // Digits of mathematical typefaces: five rows of ten.
        0x1D7CE..=0x1D7FF => digit((code - 0x1D7CE) % 10),
        _ => match ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code)) {
            Some(zero) => digit(code - zero),
            None => c,
        },
    })
}

fn digit(value: u32) -> char {
    char::from_digit(value, 10).unwrap_or('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_alike_counts_alike() {
        for (text, folded) in [
            ("０１２９", "0129"),
            ("٠١٢٩", "0129"),
            ("۰۱۲۹", "0129"),
            ("०१२९", "0129"),
            ("𝟎𝟗𝟘𝟡", "0909"),
            ("a\u{200b}\u{feff}b\u{ad}\0", "ab"),
            ("1\u{a0}2\u{202f}3\u{3000}4", "1 2 3 4"),
            ("1‑2–3−4－5", "1-2-3-4-5"),
            ("anna＠example．com", "anna@example.com"),
            ("Zürich, 東京", "Zürich, 東京"),
        ] {
            assert_eq!(text.chars().filter_map(fold).collect::<String>(), folded);
        }
    }
}
