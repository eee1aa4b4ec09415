//! Finds what patterns of the tenant's own match, a character at a time.
//!
//! All patterns are one automaton, whose states are kept with where what led to them began. Of each place where a match
//! may begin all ends are found, so that a match is masked as far as it can reach: whether a repetition is greedy or lazy
//! makes no difference.
//!
//! A state is entered once a byte, so a character costs as much as there are states that it can be at: hundreds, if a count such
//! as that of `[a-z]{1,250}` keeps so many beginnings alive. How many that can be, for the worst text there is, is known from
//! the patterns, and bounded when they are set.

use std::sync::Arc;

use regex_automata::nfa::thompson::{self, NFA, State, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_syntax::hir::{Class, Hir, HirKind};

use super::{FilterError, Kind, Span};

/// The longest match, in characters.
pub const LONGEST_MATCH: usize = 256;
/// How large the automaton of one pattern may be, in bytes.
const PATTERN_SIZE: usize = 96 * 1024;
/// The same of all of a tenant's.
const SIZE: usize = 256 * 1024;
/// How deep a pattern may be nested.
const DEPTH: u32 = 50;
/// How many states of all patterns together one byte may have to be tried at. So many cost some microseconds.
const MOST_WORK: usize = 800;
const TOO_LARGE: &str =
    "needs too large an automaton; use smaller counts, or [0-9] instead of \\d and [A-Za-z] instead of \\w";
const TOO_MUCH_WORK: &str = "takes too much work for each character; use smaller counts, or fewer alternatives";

/// All patterns of a tenant.
#[derive(Debug)]
pub(super) struct Automaton {
    nfa: NFA,
}

impl Automaton {
    pub(super) fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, FilterError> {
        let mut parsed = Vec::new();
        for (at, pattern) in patterns.into_iter().enumerate() {
            let hir = parse(pattern).map_err(|problem| FilterError::Pattern { at, problem })?;
            let refuse = |problem: &str| FilterError::Pattern { at, problem: problem.to_owned() };
            let nfa = build(std::slice::from_ref(&hir), PATTERN_SIZE).ok_or_else(|| refuse(TOO_LARGE))?;
            if work(std::slice::from_ref(&hir), &nfa) > MOST_WORK {
                return Err(refuse(TOO_MUCH_WORK));
            }
            parsed.push(hir);
        }
        let nfa = build(&parsed, SIZE).filter(|nfa| work(&parsed, nfa) <= MOST_WORK).ok_or(FilterError::TooLarge)?;
        Ok(Self { nfa })
    }
}

/// At how many states one byte may have to be tried, at most: the places of the patterns at which one and the same character
/// can stand, and the ways that lead from those to others without taking any.
fn work(patterns: &[Hir], nfa: &NFA) -> usize {
    let ways = nfa.states().iter().map(|state| match state {
        State::Union { alternates } => alternates.len(),
        State::BinaryUnion { .. } => 2,
        State::Look { .. } | State::Capture { .. } => 1,
        State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Match { .. } | State::Fail => 0,
    });
    // Where ranges of characters begin and end, in order: what has begun and not ended is the places of a character.
    let mut ranges = Vec::new();
    patterns.iter().for_each(|pattern| places(pattern, 1, &mut ranges));
    let mut bounds: Vec<(u32, bool, usize)> = ranges
        .into_iter()
        .flat_map(|(first, last, count)| [(first, true, count), (last.saturating_add(1), false, count)])
        .collect();
    // What ends before a character comes before what begins with it.
    bounds.sort_unstable();
    let (mut here, mut most) = (0_usize, 0);
    for (_, begins, count) in bounds {
        here = if begins { here.saturating_add(count) } else { here.saturating_sub(count) };
        most = most.max(here);
    }
    most.saturating_add(ways.sum())
}

/// The characters that a pattern takes: ranges, and at how many places each.
fn places(hir: &Hir, times: usize, ranges: &mut Vec<(u32, u32, usize)>) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => {
            ranges.extend(String::from_utf8_lossy(&literal.0).chars().map(|c| (u32::from(c), u32::from(c), times)));
        }
        HirKind::Class(Class::Unicode(class)) => {
            ranges.extend(class.iter().map(|range| (u32::from(range.start()), u32::from(range.end()), times)));
        }
        // Of bytes there are only those of ASCII: all others would make a match that is no text.
        HirKind::Class(Class::Bytes(class)) => {
            ranges.extend(class.iter().map(|range| (u32::from(range.start()), u32::from(range.end()), times)));
        }
        HirKind::Repetition(repetition) => {
            let most = repetition.max.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            places(&repetition.sub, times.saturating_mul(most), ranges);
        }
        HirKind::Capture(capture) => places(&capture.sub, times, ranges),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().for_each(|part| places(part, times, ranges));
        }
    }
}

fn parse(pattern: &str) -> Result<Hir, String> {
    let mut parser = regex_syntax::ParserBuilder::new().nest_limit(DEPTH).build();
    let hir = parser.parse(pattern).map_err(|error| match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        _ => "is no regular expression".to_owned(),
    })?;
    match hir.properties().minimum_len() {
        Some(0) => return Err("must not match an empty text".to_owned()),
        Some(_) => {}
        None => return Err("can never match".to_owned()),
    }
    match longest(&hir) {
        Some(length) if length <= LONGEST_MATCH => Ok(hir),
        _ => {
            Err(format!("must not match more than {LONGEST_MATCH} characters; bound its repetitions, as in .{{1,40}}"))
        }
    }
}

/// The longest match in characters, `None` if there is no bound.
fn longest(hir: &Hir) -> Option<usize> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(0),
        HirKind::Literal(literal) => Some(String::from_utf8_lossy(&literal.0).chars().count()),
        HirKind::Class(_) => Some(1),
        HirKind::Repetition(repetition) => {
            let most = usize::try_from(repetition.max?).ok()?;
            longest(&repetition.sub)?.checked_mul(most)
        }
        HirKind::Capture(capture) => longest(&capture.sub),
        HirKind::Concat(parts) => parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(longest(part)?)),
        HirKind::Alternation(parts) => parts.iter().try_fold(0, |most, part| Some(longest(part)?.max(most))),
    }
}

fn build(patterns: &[Hir], limit: usize) -> Option<NFA> {
    let config = thompson::Config::new().nfa_size_limit(Some(limit)).which_captures(WhichCaptures::None).shrink(false);
    thompson::Compiler::new().configure(config).build_many_from_hir(patterns).ok()
}

/// Where one text is in the automaton.
#[derive(Debug)]
pub(super) struct Matcher {
    automaton: Arc<Automaton>,
    /// States to go on from, with where what led there began; the earliest first.
    threads: Vec<(StateID, usize)>,
    next: Vec<(StateID, usize)>,
    stack: Vec<StateID>,
    /// In which round each state was entered last.
    entered: Vec<u64>,
    round: u64,
    before: Option<char>,
    now: usize,
}

impl Matcher {
    pub(super) fn new(automaton: Arc<Automaton>) -> Self {
        let entered = vec![0; automaton.nfa.states().len()];
        let (threads, next, stack) = (Vec::new(), Vec::new(), Vec::new());
        Self { automaton, threads, next, stack, entered, round: 0, before: None, now: 0 }
    }

    /// All that begins before is known.
    pub(super) fn undecided(&self) -> usize {
        self.threads.first().map_or(self.now, |(_, start)| *start)
    }

    pub(super) fn step(&mut self, at: usize, c: char, spans: &mut Vec<Span>) {
        let mut around = [0; 8];
        let (length, width) = (self.write_before(&mut around), c.len_utf8());
        c.encode_utf8(around.get_mut(length..length + width).unwrap_or_default());
        let around = around.get(..length + width).unwrap_or_default();
        let start = self.automaton.nfa.start_anchored();
        self.threads.push((start, at));
        for (place, byte) in around.iter().enumerate().skip(length) {
            self.advance(around, place, at, Some(*byte), spans);
        }
        self.before = Some(c);
        self.now = at + width;
    }

    pub(super) fn finish(&mut self, spans: &mut Vec<Span>) {
        let mut around = [0; 8];
        let length = self.write_before(&mut around);
        self.advance(around.get(..length).unwrap_or_default(), length, self.now, None, spans);
    }

    fn write_before(&self, around: &mut [u8; 8]) -> usize {
        self.before.map_or(0, |before| before.encode_utf8(around).len())
    }

    /// Follows everything that consumes nothing, at `place` in `around`, notes matches that end there, and takes `byte`.
    fn advance(&mut self, around: &[u8], place: usize, at: usize, byte: Option<u8>, spans: &mut Vec<Span>) {
        let Self { automaton, threads, next, stack, entered, round, .. } = self;
        let nfa = &automaton.nfa;
        *round += 1;
        next.clear();
        for (thread, start) in threads.drain(..) {
            stack.push(thread);
            while let Some(id) = stack.pop() {
                match entered.get_mut(id.as_usize()) {
                    Some(last) if *last != *round => *last = *round,
                    _ => continue,
                }
                let to = match nfa.state(id) {
                    State::ByteRange { trans } => byte.filter(|byte| trans.matches_byte(*byte)).map(|_| trans.next),
                    State::Sparse(transitions) => byte.and_then(|byte| transitions.matches_byte(byte)),
                    State::Dense(transitions) => byte.and_then(|byte| transitions.matches_byte(byte)),
                    State::Look { look, next } => {
                        if nfa.look_matcher().matches(*look, around, place) {
                            stack.push(*next);
                        }
                        None
                    }
                    State::Union { alternates } => {
                        stack.extend_from_slice(alternates);
                        None
                    }
                    State::BinaryUnion { alt1, alt2 } => {
                        stack.extend([*alt1, *alt2]);
                        None
                    }
                    State::Capture { next, .. } => {
                        stack.push(*next);
                        None
                    }
                    State::Match { pattern_id } => {
                        spans.push(Span { start, end: at, kind: Kind::Pattern(pattern_id.as_usize()) });
                        None
                    }
                    State::Fail => None,
                };
                next.extend(to.map(|to| (to, start)));
            }
        }
        std::mem::swap(threads, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_bounded() {
        let problem = |pattern: &str| match Automaton::new([pattern]) {
            Err(FilterError::Pattern { problem, .. }) => problem,
            other => panic!("{pattern}: {other:?}"),
        };
        for pattern in ["a*", "a?", "", "(|x)", "^", r"\b"] {
            assert!(problem(pattern).contains("empty"), "{pattern}");
        }
        for pattern in ["a+", "a{2,}", "x.*y", "a{257}", "(a{100}b{100}){2}", "[a-z]{1,200}-[a-z]{1,200}"] {
            assert!(problem(pattern).contains("256"), "{pattern}");
        }
        for pattern in ["(", "[z-a]", r"\8", "(?=x)", "a{2,1}"] {
            assert!(!problem(pattern).is_empty(), "{pattern}");
        }
        assert!(problem(r"\w{256}").contains("too large"));
        for pattern in
            [r"\bEMP-\d{6}\b", "(?i)project (phoenix|tiger)", "[a-z]{256}", ".{1,200}x", r"\w{1,3}-\d{4}", "é{256}"]
        {
            assert!(Automaton::new([pattern]).is_ok(), "{pattern}");
        }
        let many = ["[a-zäöü]{1,250}"; 20];
        assert!(matches!(Automaton::new(many), Err(FilterError::TooLarge)));
        // Each of them is small enough, and has hundreds of places where any character can stand.
        let busy = r"(?s-u:[\x01-\x7f]){1,250}A";
        assert!(Automaton::new([busy]).is_ok());
        assert!(matches!(Automaton::new([busy; 2]), Err(FilterError::TooLarge)));
        for pattern in [r"(?s-u:[\x01-\x7f]?(?:[a-z]?[a-z]?){1,120}){1}A", "(?:[a-z]{0,4}[0-9a-z]?[a-f]?){1,42}x"] {
            assert_eq!(problem(pattern), TOO_MUCH_WORK, "{pattern}");
        }
        // Words are cheap, for few of them can be under way at once.
        let words = (b'a'..=b'z').map(|c| format!("{}ardvark", char::from(c))).collect::<Vec<_>>().join("|");
        assert!(Automaton::new([format!(r"\b(?i:{words})\b").as_str(); 3]).is_ok());
        assert!(Automaton::new([r"\bEMP-\d{6}\b"; 15]).is_ok());
        let nested = format!("{}a{}", "(".repeat(500), ")".repeat(500));
        assert!(!problem(&nested).is_empty());
    }

    #[test]
    fn what_a_byte_costs_is_bounded() {
        for pattern in [r"(?s-u:[\x01-\x7f]){1,250}A", ".{1,200}x", "(?:[a-z]? ?){1,90}#", "[aü€]{1,200}!"] {
            let automaton = Arc::new(Automaton::new([pattern]).unwrap());
            let bound = work(&[parse(pattern).unwrap()], &automaton.nfa);
            assert!(bound <= MOST_WORK, "{pattern}: {bound}");
            let mut matcher = Matcher::new(automaton);
            for (at, c) in "a aü€ a".repeat(200).char_indices() {
                matcher.step(at, c, &mut Vec::new());
                let round = matcher.round;
                let entered = matcher.entered.iter().filter(|last| **last == round).count();
                assert!(entered <= bound, "{pattern}: {entered} of {bound}");
            }
        }
    }
}
