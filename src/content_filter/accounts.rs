//! Finds numbers of bank accounts (IBAN), so that parts of them are not taken for cards or telephones. Two letters of a
//! country, as many characters as that country's have, and check digits that fit.

use super::characters::Seen;
use super::{Kind, Span};

/// Countries, and the length of their numbers.
const LENGTHS: &str = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27\
                       GB22GE22GI23GL18GR27GT28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27\
                       MD24ME22MK19MR27MT31MU30NL18NO15PK24PL28PS29PT25QA29RO24RS22SA24SC31SE24SI19SK24SM27ST25SV28TL23\
                       TN24TR26UA29VA22VG24XK20";

#[derive(Debug, Default)]
pub(super) struct Accounts {
    start: usize,
    /// What it consists of so far, without spaces; empty if there is none.
    text: String,
    spaced: bool,
    /// Whether the last character was part of a word.
    in_word: bool,
    now: usize,
}

impl Accounts {
    /// All that begins before is known.
    pub(super) fn undecided(&self) -> usize {
        if self.text.is_empty() { self.now } else { self.start }
    }

    pub(super) fn step(&mut self, at: usize, end: usize, seen: Seen, spans: &mut Vec<Span>) {
        self.now = end;
        let c = match seen {
            Seen::Character(c) => c,
            Seen::Invisible => return,
            Seen::Break => return self.text.clear(),
        };
        let fits = match self.text.len() {
            0 | 1 => c.is_ascii_uppercase(),
            2 | 3 => c.is_ascii_digit(),
            _ => c.is_ascii_uppercase() || c.is_ascii_digit(),
        };
        let gap = c == ' ' && !self.spaced && self.text.len() >= 4;
        if gap {
            self.spaced = true;
        } else if fits && (!self.text.is_empty() || !self.in_word) {
            if self.text.is_empty() {
                self.start = at;
            }
            self.spaced = false;
            self.text.push(c);
            match length(&self.text) {
                Some(length) if length == self.text.len() => {
                    if fits_check_digits(&self.text) {
                        spans.push(Span { start: self.start, end, kind: Kind::Account });
                    }
                    self.text.clear();
                }
                Some(_) => {}
                // No country's.
                None if self.text.len() >= 2 => self.text.clear(),
                None => {}
            }
        } else {
            self.text.clear();
        }
        self.in_word = c.is_alphanumeric();
    }

    pub(super) fn finish(&mut self) {
        self.text.clear();
    }
}

fn length(text: &str) -> Option<usize> {
    let country = text.get(..2)?;
    let at = (0..LENGTHS.len()).step_by(4).find(|at| LENGTHS.get(*at..at + 2) == Some(country))?;
    LENGTHS.get(at + 2..at + 4)?.parse().ok()
}

/// The rest of the division by 97, with the first four characters last and letters as numbers from 10, is 1.
fn fits_check_digits(text: &str) -> bool {
    let (head, tail) = text.split_at_checked(4).unwrap_or((text, ""));
    let rest = tail.chars().chain(head.chars()).filter_map(|c| c.to_digit(36)).fold(0, |rest, value| {
        let shifted = if value < 10 { rest * 10 } else { rest * 100 };
        (shifted + value) % 97
    });
    rest == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_fitting_check_digits_are_known() {
        for text in
            ["DE89370400440532013000", "GB29NWBK60161331926819", "FR1420041010050500013M02606", "NO9386011117947"]
        {
            assert_eq!(length(text), Some(text.len()));
            assert!(fits_check_digits(text), "{text}");
        }
        assert!(!fits_check_digits("DE88370400440532013000"));
        assert_eq!((length("ZZ12"), length("XK05")), (None, Some(20)));
    }
}
