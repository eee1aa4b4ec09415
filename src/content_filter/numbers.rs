//! Finds card and telephone numbers: gathers groups of digits with what joins them, and judges each once enough of what
//! follows is known.

use super::characters::Seen;
use super::phones::{self, Hint};
use super::{Kind, Span, cards};

/// More digits in one piece are nobody's number.
const MOST_DIGITS: usize = 19;
/// With so many digits behind a group's beginning, all that may begin with it is known, and the group behind that.
const ENOUGH: usize = 24;
/// The longest that joins two groups.
const MOST_BETWEEN: usize = 7;
/// How much of the text before a number is looked at, in characters.
const TAIL: usize = 48;

/// What joins a group to the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joint {
    /// It is the first one.
    None,
    Space,
    Dash,
    Dot,
    Slash,
    /// An opening parenthesis.
    Opening,
    /// A closing one.
    Closing,
    /// More spaces, or Markdown that makes each group bold: parts of a card's number at most.
    Far,
}

/// Digits in one piece.
#[derive(Debug)]
pub(super) struct Group {
    /// Where it begins, with a `+` or a parenthesis before it.
    start: usize,
    digits_start: usize,
    end: usize,
    pub(super) digits: String,
    pub(super) joint: Joint,
    pub(super) plus: bool,
    /// Whether a parenthesis is before it, and it is the first one.
    pub(super) opened: bool,
    /// Whether a letter, or whatever else makes it something else, is right behind it.
    pub(super) attached_behind: bool,
    /// What is right behind the last one.
    behind: Option<char>,
}

/// A `+` or a parenthesis, which may begin a number.
#[derive(Debug, Clone, Copy)]
struct Lead {
    start: usize,
    plus_start: usize,
    plus: bool,
    opened: bool,
    before: Before,
}

/// What stands before the first group.
#[derive(Debug, Clone, Copy)]
struct Before {
    hint: Hint,
    /// It goes on where a decimal number or something else begins.
    decimal: Option<Decimal>,
    letter: bool,
    /// Nothing but letters that are digits of hexadecimal numbers.
    hexadecimal: bool,
    /// A sign of money.
    money: bool,
}

/// What makes a number look like the end of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decimal {
    /// Digits, and a point or a letter.
    Point,
    /// A zero of its own and a comma. In a list of numbers it is one of them.
    Comma,
}

/// A word behind a number that may be one of money.
#[derive(Debug)]
struct Behind {
    /// What the number ended with.
    right: char,
    word: String,
}

#[derive(Debug)]
pub(super) struct Numbers {
    cards: bool,
    phones: bool,
    /// The end of the text so far, in lower case.
    tail: String,
    groups: Vec<Group>,
    before: Before,
    /// How many digits the group had that is before the first one and joined to it.
    previous: Option<usize>,
    /// What came since the last group.
    between: Vec<(usize, char)>,
    lead: Option<Lead>,
    /// In digits that are too many.
    overlong: bool,
    behind: Option<Behind>,
    /// Whether money is right behind the groups.
    money: bool,
    now: usize,
}

impl Numbers {
    pub(super) fn new(cards: bool, phones: bool) -> Self {
        Self {
            cards,
            phones,
            tail: String::new(),
            groups: Vec::new(),
            before: Before { hint: Hint::None, decimal: None, letter: false, hexadecimal: false, money: false },
            previous: None,
            between: Vec::new(),
            lead: None,
            overlong: false,
            behind: None,
            money: false,
            now: 0,
        }
    }

    /// All that begins before is known.
    pub(super) fn undecided(&self) -> usize {
        let group = self.groups.first().map(|group| group.start);
        group.or_else(|| self.lead.map(|lead| lead.start)).unwrap_or(self.now)
    }

    pub(super) fn step(&mut self, at: usize, end: usize, seen: Seen, spans: &mut Vec<Span>) {
        match seen {
            Seen::Character(c) => {
                let goes_on = self.read_behind(c, spans);
                match c {
                    _ if goes_on => {}
                    '0'..='9' => self.digit(at, end, c, spans),
                    ' ' | '-' | '.' | '/' | ')' | '*' if !self.groups.is_empty() && !self.overlong => {
                        self.join(at, c, spans);
                    }
                    '(' if !self.groups.is_empty() && !self.overlong => {
                        self.join(at, c, spans);
                        if self.groups.is_empty() {
                            self.begin(at, c);
                        }
                    }
                    '+' | '(' => {
                        if self.overlong || !self.groups.is_empty() {
                            self.over(None, spans);
                        }
                        self.begin(at, c);
                    }
                    _ => self.over(Some(c), spans),
                }
                self.remember(c);
            }
            Seen::Invisible => {}
            Seen::Break => self.finish(spans),
        }
        self.now = end;
    }

    pub(super) fn finish(&mut self, spans: &mut Vec<Span>) {
        self.read_behind(' ', spans);
        self.over(None, spans);
    }

    /// Reads what is behind a number as long as it may become a word of money. Once that is known, the number is over.
    fn read_behind(&mut self, c: char, spans: &mut Vec<Span>) -> bool {
        let begins = match &self.behind {
            Some(_) => c.is_alphabetic(),
            None => {
                let near = self.between.is_empty() || self.between.iter().all(|(_, c)| *c == ' ');
                near && !self.groups.is_empty() && !self.overlong && (c.is_alphabetic() || phones::is_money_sign(c))
            }
        };
        let mut word = self.behind.as_ref().map(|behind| behind.word.clone()).unwrap_or_default();
        word.extend(c.to_lowercase().filter(|_| begins));
        if begins && phones::begins_money(&word) {
            let right = self.behind.as_ref().map_or(c, |behind| behind.right);
            self.behind = Some(Behind { right, word });
            return true;
        }
        if let Some(Behind { right, word }) = self.behind.take() {
            self.money = !c.is_alphanumeric() && phones::is_money(&word);
            self.over(Some(right), spans);
        }
        false
    }

    fn remember(&mut self, c: char) {
        self.tail.extend(c.to_lowercase());
        if self.tail.len() > 8 * TAIL {
            let from = self.tail.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
            self.tail.drain(..from);
        }
    }

    /// What stands before a number that begins with `first`.
    fn look_back(&self, first: char) -> Before {
        let mut back = self.tail.chars().rev();
        let (one, two, three) = (back.next(), back.next(), back.next());
        let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        // Scripts that put no spaces between words begin behind this.
        let letter = one.is_some_and(|c| c.is_alphanumeric() && u32::from(c) < 0x0E00);
        // A list has commas without spaces as well; a fraction with so many digits is less than one as a rule.
        let decimal = match one {
            Some('.') if is_digit(two) => Some(Decimal::Point),
            // A list has commas without spaces as well; a fraction with so many digits is less than one as a rule.
            Some(',') if two == Some('0') && three.is_none_or(char::is_whitespace) => Some(Decimal::Comma),
            // Letters between digits: hexadecimal, or somebody's identifier.
            Some(one) if one.is_ascii_alphabetic() && is_digit(two) => Some(Decimal::Point),
            _ => None,
        };
        let letters = self.tail.chars().rev().take_while(|c| c.is_alphanumeric());
        let hexadecimal = letter && letters.into_iter().all(|c| c.is_ascii_hexdigit());
        let money = [one, two.filter(|_| one == Some(' '))].into_iter().flatten().any(phones::is_money_sign);
        let attached = match one {
            Some('-' | '_' | '/' | '\\' | '@') => is_word(two),
            Some(':' | '.' | ',') => is_digit(two),
            _ => money,
        };
        let hint = match first {
            _ if letter && first != '(' => Hint::Attached,
            '+' => Hint::None,
            _ => match phones::hint(&self.tail) {
                Hint::None if attached || letter => Hint::Attached,
                hint => hint,
            },
        };
        Before { hint, decimal, letter, hexadecimal, money }
    }

    fn begin(&mut self, at: usize, c: char) {
        self.lead = Some(match self.lead {
            Some(lead) if c == '+' && lead.opened && !lead.plus => {
                Lead { plus: true, plus_start: at, before: Before { hint: Hint::None, ..lead.before }, ..lead }
            }
            Some(lead) if c == '(' && lead.plus && !lead.opened => Lead { opened: true, ..lead },
            _ => {
                let (plus, opened) = (c == '+', c == '(');
                Lead { start: at, plus_start: at, plus, opened, before: self.look_back(c) }
            }
        });
    }

    fn digit(&mut self, at: usize, end: usize, digit: char, spans: &mut Vec<Span>) {
        if self.overlong {
            return;
        }
        if self.between.is_empty()
            && let Some(group) = self.groups.last_mut()
        {
            group.digits.push(digit);
            group.end = end;
            if group.digits.len() > MOST_DIGITS {
                self.groups.pop();
                self.over(None, spans);
                self.overlong = true;
            }
            return;
        }
        let mut joint = self.joint();
        if joint == Joint::None && !self.groups.is_empty() {
            let opened = self.between.last().filter(|(_, c)| *c == '(').copied();
            self.over(None, spans);
            if let Some((at, c)) = opened {
                // What is before the parenthesis says nothing of it.
                self.begin(at, c);
            }
        }
        if self.groups.is_empty() {
            joint = Joint::None;
        }
        self.between.clear();
        let lead = self.lead.take();
        if self.groups.is_empty() && self.previous.is_none() {
            self.before = lead.map_or_else(|| self.look_back(digit), |lead| lead.before);
        }
        self.groups.push(Group {
            start: lead.map_or(at, |lead| lead.start),
            digits_start: lead.filter(|lead| lead.plus).map_or(at, |lead| lead.plus_start),
            end,
            digits: digit.to_string(),
            joint,
            plus: lead.is_some_and(|lead| lead.plus),
            opened: lead.is_some_and(|lead| lead.opened),
            attached_behind: false,
            behind: None,
        });
        self.judge(false, spans);
    }

    fn join(&mut self, at: usize, c: char, spans: &mut Vec<Span>) {
        self.between.push((at, c));
        if self.between.len() > MOST_BETWEEN {
            self.over(None, spans);
        } else {
            self.judge(false, spans);
        }
    }

    fn joint(&self) -> Joint {
        let between: String = self.between.iter().map(|(_, c)| c).collect();
        let inside = between.trim_matches('*');
        match between.as_str() {
            " " | "  " => Joint::Space,
            "   " | "    " => Joint::Far,
            _ if between.starts_with('*') && between.ends_with('*') && matches!(inside, " " | "-" | " - ") => {
                Joint::Far
            }
            "-" | " - " => Joint::Dash,
            "." => Joint::Dot,
            "/" | " / " => Joint::Slash,
            "(" | " (" | "-(" | ".(" | "/(" => Joint::Opening,
            ")" | ") " | ")-" | ")." | ")/" | ") - " | ") / " => Joint::Closing,
            _ => Joint::None,
        }
    }

    /// No more groups join these.
    fn over(&mut self, right: Option<char>, spans: &mut Vec<Span>) {
        if let Some(last) = self.groups.last_mut()
            && self.between.is_empty()
        {
            last.attached_behind = match right {
                Some(':') => last.digits.len() <= 2,
                Some(c) => c == '%' || (c.is_alphabetic() && u32::from(c) < 0x0E00),
                None => false,
            };
            last.behind = right;
        }
        self.judge(true, spans);
        self.between.clear();
        self.previous = None;
        self.overlong = false;
        self.money = false;
        self.lead = None;
    }

    /// Judges the groups of which enough is known, from the first on.
    fn judge(&mut self, over: bool, spans: &mut Vec<Span>) {
        loop {
            let growing = usize::from(!over && self.between.is_empty());
            let known = self.groups.len().saturating_sub(growing);
            let Some(groups @ [first, ..]) = self.groups.get(..known) else { return };
            if !over && groups.iter().map(|group| group.digits.len()).sum::<usize>() <= ENOUGH {
                return;
            }
            let found = self.card(groups).map(|count| (count, Kind::Card)).or_else(|| {
                let hint = match self.hint_of(first) {
                    _ if (self.before.money || self.money) && phones::is_amount(groups) => Hint::Attached,
                    hint => hint,
                };
                let count = phones::length(groups, hint, self.in_row(first)).filter(|_| self.phones)?;
                Some((count, Kind::Phone))
            });
            let mut count = 1;
            if let Some((length, kind)) = found
                && let Some(last) = groups.get(length.saturating_sub(1))
            {
                let inside = groups.get(1..length).unwrap_or_default();
                let parenthesis = inside
                    .iter()
                    .map(|group| group.joint)
                    .find(|joint| matches!(joint, Joint::Opening | Joint::Closing));
                let whole = kind == Kind::Phone && first.opened && parenthesis == Some(Joint::Closing);
                let start = if whole { first.start } else { first.digits_start };
                spans.push(Span { start, end: last.end, kind });
                count = length;
            }
            self.previous = groups.get(count.saturating_sub(1)).map(|group| group.digits.len());
            self.groups.drain(..count);
        }
    }

    fn hint_of(&self, first: &Group) -> Hint {
        match (first.joint, self.before.hint) {
            (Joint::None, hint) => hint,
            (Joint::Space, Hint::Other) => Hint::Other,
            // The number of a parcel, say, in groups of letters and digits.
            (Joint::Space, Hint::Attached) if self.before.letter => Hint::Attached,
            // Another column's number is one of its own.
            (Joint::Space | Joint::Far, _) => Hint::None,
            _ => Hint::Attached,
        }
    }

    /// Whether it is one of a row of numbers of the same length: a table's, or the digits of a long one.
    fn in_row(&self, first: &Group) -> bool {
        !matches!(first.joint, Joint::None | Joint::Far) && self.previous == Some(first.digits.len())
    }

    /// How many of the groups are a card's number, the most there may be.
    fn card(&self, groups: &[Group]) -> Option<usize> {
        if !self.cards {
            return None;
        }
        let first = groups.first()?;
        let decimal = match (first.joint, self.before.decimal) {
            (Joint::None, Some(Decimal::Comma)) => !matches!(first.behind, Some(',' | ';' | ']')),
            (Joint::None, decimal) => decimal.is_some(),
            (joint, _) => joint == Joint::Dot,
        };
        // Of a long hexadecimal number, which has letters of its own.
        let hexadecimal = self.before.hexadecimal && first.behind.is_some_and(|c| c.is_ascii_hexdigit());
        let (mut digits, mut sizes, mut found) = (String::new(), Vec::new(), None);
        for (at, group) in groups.iter().enumerate() {
            let joins = matches!(group.joint, Joint::Space | Joint::Dash | Joint::Dot | Joint::Slash | Joint::Far);
            if (at > 0 && !joins) || digits.len() + group.digits.len() > MOST_DIGITS {
                break;
            }
            digits.push_str(&group.digits);
            sizes.push(group.digits.len());
            // One piece of a long decimal, or of a hexadecimal number.
            let piece = at == 0 && (decimal || (first.joint == Joint::None && hexadecimal));
            let size = sizes.first().copied();
            let next = groups.get(at + 1).filter(|next| next.joint != Joint::None).map(|next| next.digits.len());
            let before = self.previous.filter(|_| first.joint != Joint::None);
            let stands_alone = before != size && next != size;
            if !piece && cards::is_grouping(&sizes, stands_alone) && cards::is_card_number(&digits) {
                found = Some(at + 1);
            }
        }
        found
    }
}
