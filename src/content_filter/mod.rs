//! Masks card numbers, e-mail addresses, telephone numbers and what a tenant's own patterns match, in a text that comes in
//! pieces.
//!
//! A text goes through a character at a time: each finder takes the character, notes what it has found, and says up to
//! where it has made up its mind. What lies before that, for all of them, goes out. So the result cannot depend on how the
//! text was cut, and nothing is held that cannot become part of a match any more. Each finder bounds what it holds.
//!
//! Where findings overlap, all that any of them covers is masked once, as what the first of them is.
//!
//! It knows texts. It never knows whose they are, where they come from or where they go.

mod accounts;
mod cards;
mod characters;
mod emails;
mod numbers;
mod patterns;
mod phones;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use thiserror::Error;

use self::accounts::Accounts;
use self::characters::Reader;
use self::emails::Emails;
use self::numbers::Numbers;
pub use self::patterns::LONGEST_MATCH;
use self::patterns::{Automaton, Matcher};

/// Why there is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilterError {
    /// A pattern is refused.
    #[error("a pattern cannot be used")]
    Pattern {
        /// Which one, counted from zero.
        at: usize,
        /// What is wrong with it, in words for whoever wrote it.
        problem: String,
    },
    /// The patterns are too large together, or take too much work.
    #[error("the patterns are too large together, or take too much work")]
    TooLarge,
}

/// What to mask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Card numbers.
    pub card_numbers: bool,
    /// E-mail addresses.
    pub email_addresses: bool,
    /// Telephone numbers.
    pub phone_numbers: bool,
    /// Patterns, and what their matches are replaced by.
    pub patterns: Vec<(&'a str, String)>,
}

/// A filter, ready for any number of texts.
#[derive(Debug)]
pub struct ContentFilter {
    cards: bool,
    emails: bool,
    phones: bool,
    automaton: Option<Arc<Automaton>>,
    replacements: Vec<String>,
}

impl ContentFilter {
    /// A filter for some rules; `None` if they mask nothing.
    ///
    /// # Errors
    /// If a pattern is refused.
    pub fn new(rules: Rules<'_>) -> Result<Option<Arc<Self>>, FilterError> {
        let Rules { card_numbers: cards, email_addresses: emails, phone_numbers: phones, patterns } = rules;
        let automaton = match patterns.is_empty() {
            true => None,
            false => Some(Arc::new(Automaton::new(patterns.iter().map(|(pattern, _)| *pattern))?)),
        };
        let replacements = patterns.into_iter().map(|(_, replacement)| replacement).collect();
        let any = cards || emails || phones || automaton.is_some();
        Ok(any.then(|| Arc::new(Self { cards, emails, phones, automaton, replacements })))
    }

    /// Masks a text that is there as a whole.
    pub fn mask(self: &Arc<Self>, text: &str) -> String {
        let mut masking = Masking::new(Arc::clone(self));
        let mut masked = masking.push(text);
        masked.push_str(&masking.finish());
        masked
    }

    fn replacement(&self, kind: Kind) -> &str {
        match kind {
            Kind::Card => "[card number]",
            Kind::Email => "[e-mail address]",
            Kind::Phone => "[phone number]",
            Kind::Pattern(at) => self.replacements.get(at).map_or("", String::as_str),
            Kind::Account => "",
        }
    }
}

/// The longest piece of a text that is masked at once, in bytes: with the most expensive patterns there may be, it takes some
/// milliseconds.
const PIECE: usize = 1024;

/// Cuts a text into pieces that [`Masking::push`] takes without keeping a thread from everybody else's work for long.
/// Between two of them the caller yields.
pub fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, more) = rest.split_at_checked(rest.floor_char_boundary(PIECE))?;
        rest = more;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What was found. In the order in which one that begins and ends where another does comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A bank account, in which there are neither cards nor telephones. It is not masked itself.
    Account,
    Pattern(usize),
    Card,
    Email,
    Phone,
}

/// Something found, by places in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
    kind: Kind,
}

/// One text on its way through a filter.
#[derive(Debug)]
pub struct Masking {
    filter: Arc<ContentFilter>,
    /// Reads for the three that follow. The tenant's patterns match what is written, not what is seen.
    reader: Option<Reader>,
    accounts: Option<Accounts>,
    numbers: Option<Numbers>,
    emails: Option<Emails>,
    matcher: Option<Matcher>,
    /// What has come and not gone out, and where it begins in the text.
    held: String,
    held_from: usize,
    /// Found, and not settled.
    spans: Vec<Span>,
    /// Up to here the text is masked, and its mask has gone out.
    masked_to: usize,
    /// Up to here it is an account's number.
    account_to: usize,
}

impl Masking {
    /// Begins a text.
    pub fn new(filter: Arc<ContentFilter>) -> Self {
        let numbers = filter.cards || filter.phones;
        Self {
            reader: (numbers || filter.emails).then(Reader::default),
            accounts: numbers.then(Accounts::default),
            numbers: numbers.then(|| Numbers::new(filter.cards, filter.phones)),
            emails: filter.emails.then(Emails::default),
            matcher: filter.automaton.clone().map(Matcher::new),
            filter,
            held: String::new(),
            held_from: 0,
            spans: Vec::new(),
            masked_to: 0,
            account_to: 0,
        }
    }

    /// Takes a piece of the text. Returns what may go out, which may be nothing.
    #[must_use]
    pub fn push(&mut self, piece: &str) -> String {
        let mut out = String::with_capacity(piece.len());
        let mut at = self.held_from + self.held.len();
        self.held.push_str(piece);
        let mut settled_at = at;
        for c in piece.chars() {
            let spans = &mut self.spans;
            let end = at + c.len_utf8();
            if let Some(reader) = &mut self.reader {
                let seen = reader.see(c);
                if let Some(accounts) = &mut self.accounts {
                    accounts.step(at, end, seen, spans);
                }
                if let Some(numbers) = &mut self.numbers {
                    numbers.step(at, end, seen, spans);
                }
                if let Some(emails) = &mut self.emails {
                    emails.step(at, end, seen, spans);
                }
            }
            if let Some(matcher) = &mut self.matcher {
                matcher.step(at, c, spans);
            }
            at = end;
            // Of a long piece not everything is kept until its end.
            if at - settled_at >= PIECE {
                settled_at = at;
                self.settle(self.undecided(at), &mut out);
            }
        }
        self.settle(self.undecided(at), &mut out);
        out
    }

    /// The text is over. Returns the rest of it.
    #[must_use]
    pub fn finish(&mut self) -> String {
        let spans = &mut self.spans;
        if let Some(accounts) = &mut self.accounts {
            accounts.finish();
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.finish(spans);
        }
        if let Some(emails) = &mut self.emails {
            emails.finish(spans);
        }
        if let Some(matcher) = &mut self.matcher {
            matcher.finish(spans);
        }
        let mut out = String::new();
        // Past the end: whatever begins is known.
        self.settle(self.held_from + self.held.len(), &mut out);
        out
    }

    fn undecided(&self, end: usize) -> usize {
        let places = [
            self.accounts.as_ref().map(Accounts::undecided),
            self.numbers.as_ref().map(Numbers::undecided),
            self.emails.as_ref().map(Emails::undecided),
            self.matcher.as_ref().map(Matcher::undecided),
        ];
        places.into_iter().flatten().min().unwrap_or(end)
    }

    /// Lets out what lies before `to`: whatever begins there was found.
    fn settle(&mut self, to: usize, out: &mut String) {
        let mut at = self.held_from;
        if !self.spans.is_empty() {
            // The longest first of those that begin together.
            self.spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end), span.kind));
            let known = self.spans.partition_point(|span| span.start < to);
            let spans: Vec<Span> = self.spans.drain(..known).collect();
            for span in spans {
                match span.kind {
                    Kind::Account => self.account_to = self.account_to.max(span.end),
                    Kind::Card | Kind::Phone if span.start < self.account_to => {}
                    kind => {
                        if span.start >= self.masked_to {
                            self.let_out(at.max(self.masked_to), span.start, out);
                            out.push_str(self.filter.replacement(kind));
                            at = span.start;
                        }
                        self.masked_to = self.masked_to.max(span.end);
                    }
                }
            }
        }
        self.let_out(at.max(self.masked_to), to, out);
        let gone = to.saturating_sub(self.held_from).min(self.held.len());
        self.held.drain(..gone);
        self.held_from += gone;
    }

    fn let_out(&self, from: usize, to: usize, out: &mut String) {
        if from < to {
            let (from, to) = (from.saturating_sub(self.held_from), to.saturating_sub(self.held_from));
            out.push_str(self.held.get(from..to).unwrap_or_default());
        }
    }
}
