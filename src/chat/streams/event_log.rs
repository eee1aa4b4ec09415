//! The events of one answer, in memory: written once, read by any number of listeners at their own pace.
//!
//! Writing a delta is appending to a text under a lock and waking whoever waits; nobody who is slow or has left holds
//! the model up. The text is that of the answer, which is needed anyway; of each delta only its end is kept.

use std::borrow::Cow;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::UNFINISHED;
use super::listeners::{Followed, Place};
use crate::api::tenant::Usage;
use crate::ids::{ChatSessionId, MessageId};

/// Events taken at most under one lock.
const BATCH: usize = 256;

/// A step of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEvent<'a> {
    /// The answer has begun.
    Started,
    /// More text.
    Delta(&'a str),
    /// The answer is over.
    Ended(&'a AnswerEnd),
    /// The mark of a stream that ended well: nothing comes any more.
    Mark,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerEnd {
    /// It is stored, and whole unless it was stopped.
    Done {
        /// The model that answered.
        model: String,
        /// The assistant that answered; none if it was none in particular.
        assistant: Option<String>,
        /// What it cost.
        usage: Usage,
        /// Whether its user had it stopped.
        stopped: bool,
        /// Whether no model gave it: all of them were down, and it is the tenant's own message instead.
        degraded: bool,
        /// Whether it was kept from an earlier question, and no model was asked.
        from_cache: bool,
        /// What was left of the tenant's quota when it was begun; none if there is no limit.
        queries_remaining: Option<u64>,
    },
    /// The answer failed. What had arrived is stored and marked, unless the code says otherwise.
    Failed {
        /// A stable code.
        code: Cow<'static, str>,
        /// The tenant's own error message.
        message: String,
    },
    /// The server that made it has died. What it had written down is kept; it may have told more than that.
    ServerLost {
        /// A stable code.
        code: Cow<'static, str>,
    },
    /// The answer may go on, but not here: whoever wants the rest asks again.
    Away,
}

impl AnswerEnd {
    /// A stable code and a message, if the answer failed.
    pub fn failure(&self) -> Option<(&str, &str)> {
        match self {
            Self::Failed { code, message } => Some((code, message)),
            Self::ServerLost { code } => Some((code, UNFINISHED)),
            Self::Done { .. } | Self::Away => None,
        }
    }

    /// A whole answer's, for tests that need any.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self::Done {
            model: "m".to_owned(),
            assistant: None,
            usage: Usage { input_tokens: 1, output_tokens: 2, reported: true },
            stopped: false,
            degraded: false,
            from_cache: false,
            queries_remaining: None,
        }
    }
}

/// What has happened of an answer so far.
#[derive(Debug)]
pub(in crate::chat) struct EventLog {
    session_id: ChatSessionId,
    message_id: MessageId,
    state: Mutex<State>,
    changed: Notify,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    text: String,
    /// Where each delta ends in the text.
    ends: Vec<u32>,
    end: Option<AnswerEnd>,
}

/// Deltas in a row, as they are written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::chat) struct Deltas {
    /// The number of the first one.
    pub(in crate::chat) first_event: u64,
    pub(in crate::chat) content: String,
    /// Their lengths; see the tenant migration that made the column. `None` if all is one.
    pub(in crate::chat) lengths: Option<Vec<u8>>,
}

impl EventLog {
    pub(in crate::chat) fn new(session_id: ChatSessionId, message_id: MessageId) -> Arc<Self> {
        let (state, changed, ended) = (Mutex::default(), Notify::new(), Notify::new());
        Arc::new(Self { session_id, message_id, state, changed, ended })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a delta, which must have text in it.
    pub(in crate::chat) fn push(&self, delta: &str) {
        self.state().push(delta);
        self.changed.notify_waiters();
    }

    /// Appends what was written down of the answer, as far as it is not here yet.
    pub(in crate::chat) fn fill(&self, deltas: &Deltas) {
        {
            let mut state = self.state();
            for (number, delta) in (deltas.first_event..).zip(split(&deltas.content, deltas.lengths.as_deref())) {
                // A part whose predecessor is missing waits for that.
                if number == state.count() + 1 {
                    state.push(delta);
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Ends it. Only the first end counts.
    pub(in crate::chat) fn end(&self, end: AnswerEnd) {
        self.state().end.get_or_insert(end);
        self.changed.notify_waiters();
        self.ended.notify_waiters();
    }

    /// Whether nothing will come any more.
    pub(in crate::chat) fn has_ended(&self) -> bool {
        self.state().end.is_some()
    }

    /// How many deltas there are.
    pub(in crate::chat) fn count(&self) -> u64 {
        self.state().count()
    }

    /// The text so far, and the lengths of its deltas.
    pub(in crate::chat) fn content(&self) -> (String, Vec<u8>) {
        let state = self.state();
        (state.text.clone(), lengths(0, &state.ends))
    }

    /// The deltas after the first `known`, if there are any, and the number of all.
    pub(super) fn since(&self, known: usize) -> Option<(Deltas, usize)> {
        let state = self.state();
        let new = state.ends.get(known..).filter(|new| !new.is_empty())?;
        let begin = state.end_of(known);
        let content = state.text.get(begin..).unwrap_or_default().to_owned();
        let first_event = u64::try_from(known).unwrap_or(u64::MAX).saturating_add(1);
        let lengths = Some(lengths(begin, new));
        Some((Deltas { first_event, content, lengths }, state.ends.len()))
    }
}

impl State {
    fn push(&mut self, delta: &str) {
        self.text.push_str(delta);
        // An answer is far smaller than that.
        self.ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
    }

    fn count(&self) -> u64 {
        u64::try_from(self.ends.len()).unwrap_or(u64::MAX)
    }

    /// Where the first `deltas` end.
    fn end_of(&self, deltas: usize) -> usize {
        let last = deltas.checked_sub(1).and_then(|last| self.ends.get(last));
        last.map_or(0, |end| *end as usize)
    }
}

/// The lengths of deltas that begin and end there, as LEB128 numbers.
fn lengths(mut begin: usize, ends: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ends.len());
    for end in ends {
        let end = *end as usize;
        let mut left = end.saturating_sub(begin);
        begin = end;
        loop {
            let low = u8::try_from(left & 0x7f).unwrap_or_default();
            left >>= 7;
            if left == 0 {
                bytes.push(low);
                break;
            }
            bytes.push(low | 0x80);
        }
    }
    bytes
}

/// A text cut into its deltas. Where lengths and text do not fit, the rest is one delta: no text is ever lost.
fn split<'a>(content: &'a str, lengths: Option<&[u8]>) -> impl Iterator<Item = &'a str> {
    let (mut rest, mut lengths) = (content, lengths.unwrap_or_default().iter());
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut length, mut shift, mut whole) = (0_usize, 0_u32, false);
        for byte in lengths.by_ref() {
            length |= usize::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
            shift += 7;
            if byte & 0x80 == 0 {
                whole = true;
                break;
            }
        }
        let delta = whole.then(|| rest.get(..length)).flatten().filter(|delta| !delta.is_empty()).unwrap_or(rest);
        rest = rest.get(delta.len()..).unwrap_or_default();
        Some(delta)
    })
}

/// Somebody who reads an answer's events. Dropping it does not stop the answer.
pub struct Listener {
    log: Arc<EventLog>,
    /// The number of the event to read next.
    next: u64,
    /// Keeps whoever fills the log for those who listen here.
    _followed: Option<Arc<Followed>>,
    /// Whoever listens again may lose it to somebody who comes later.
    place: Option<Place>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("message_id", &self.log.message_id).field("next", &self.next).finish()
    }
}

impl Listener {
    /// Reads what comes behind event `after`; everything if `None`.
    pub(in crate::chat) fn new(log: Arc<EventLog>, after: Option<u64>) -> Self {
        Self { log, next: after.map_or(0, |after| after.saturating_add(1)), _followed: None, place: None }
    }

    /// The same on a log that somebody fills for those who listen here.
    pub(super) fn following(followed: Arc<Followed>, after: Option<u64>) -> Self {
        let log = Arc::clone(&followed.log);
        Self { _followed: Some(followed), ..Self::new(log, after) }
    }

    /// The same with a place: when somebody else takes it, nothing comes any more, and whoever wants the rest asks again.
    pub(super) fn at(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// The conversation.
    pub fn session_id(&self) -> ChatSessionId {
        self.log.session_id
    }

    /// The answer.
    pub fn message_id(&self) -> MessageId {
        self.log.message_id
    }

    /// Hands over the events that are there, with their numbers, and goes on behind them. Not all, if they are many.
    pub fn take(&mut self, mut event: impl FnMut(u64, AnswerEvent<'_>)) {
        if self.place.as_ref().is_some_and(Place::is_taken) {
            self.next = u64::MAX;
        }
        if self.is_over() {
            return;
        }
        let state = self.log.state();
        if self.next == 0 {
            event(0, AnswerEvent::Started);
            self.next = 1;
        }
        let count = state.count();
        let known = usize::try_from(self.next - 1).unwrap_or(usize::MAX);
        let mut begin = state.end_of(known);
        for end in state.ends.get(known..).unwrap_or_default().iter().take(BATCH) {
            let end = *end as usize;
            event(self.next, AnswerEvent::Delta(state.text.get(begin..end).unwrap_or_default()));
            begin = end;
            self.next += 1;
        }
        if let Some(end) = &state.end
            && self.next > count
        {
            // A server that died may have told more than it had written down: that its answer is over is news all the
            // same to whoever has heard more of it.
            if self.next == count + 1 || matches!(end, AnswerEnd::ServerLost { .. }) {
                if !matches!(end, AnswerEnd::Away) {
                    event(self.next, AnswerEvent::Ended(end));
                }
                self.next = self.next.max(count + 2);
            }
            if self.next == count + 2 && matches!(end, AnswerEnd::Done { .. }) {
                event(self.next, AnswerEvent::Mark);
            }
            self.next = u64::MAX;
        }
    }

    /// Whether everything was taken and nothing will come.
    pub fn is_over(&self) -> bool {
        self.next == u64::MAX
    }

    /// Waits until there is something to take, or nothing will come. May be given up at any time.
    pub async fn ready(&self) {
        match &self.place {
            None => self.news().await,
            Some(place) => tokio::select! {
                () = place.taken() => {}
                () = self.news() => {}
            },
        }
    }

    async fn news(&self) {
        loop {
            // From here on no news is missed.
            let changed = pin!(self.log.changed.notified());
            {
                let state = self.log.state();
                if state.end.is_some() || self.next <= state.count() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Waits for the end; returns it with the whole text.
    pub async fn whole(self) -> (String, AnswerEnd) {
        loop {
            let ended = pin!(self.log.ended.notified());
            {
                let state = self.log.state();
                if let Some(end) = &state.end {
                    return (state.text.clone(), end.clone());
                }
            }
            ended.await;
        }
    }
}

/// Ends a log as lost if whoever fills it goes without a word, which only a defect can make it do.
pub(in crate::chat) struct LastWord(pub(in crate::chat) Arc<EventLog>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.end(AnswerEnd::Failed { code: Cow::Borrowed("answer_lost"), message: UNFINISHED.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Arc<EventLog> {
        EventLog::new(ChatSessionId::new(), MessageId::new())
    }

    fn failed() -> AnswerEnd {
        AnswerEnd::Failed { code: Cow::Borrowed("code"), message: String::new() }
    }

    fn taken(listener: &mut Listener) -> Vec<(u64, String)> {
        let mut events = Vec::new();
        listener.take(|number, event| {
            let name = match event {
                AnswerEvent::Started => "started".to_owned(),
                AnswerEvent::Delta(text) => format!("+{text}"),
                AnswerEvent::Ended(AnswerEnd::Done { .. }) => "done".to_owned(),
                AnswerEvent::Ended(_) => "error".to_owned(),
                AnswerEvent::Mark => "mark".to_owned(),
            };
            events.push((number, name));
        });
        events
    }

    fn all(log: &Arc<EventLog>, after: Option<u64>) -> Vec<(u64, String)> {
        let mut listener = Listener::new(Arc::clone(log), after);
        let events = taken(&mut listener);
        assert!(listener.is_over());
        events
    }

    #[test]
    fn every_place_can_be_resumed_from() {
        let log = log();
        for delta in ["Zw", "ölf", " Zeichen"] {
            log.push(delta);
        }
        log.end(AnswerEnd::sample());
        let whole = all(&log, None);
        let names: Vec<_> = whole.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["started", "+Zw", "+ölf", "+ Zeichen", "done", "mark"]);
        for (place, (number, _)) in whole.iter().enumerate() {
            assert_eq!(*number, u64::try_from(place).unwrap());
            assert_eq!(all(&log, Some(*number)), whole[place + 1..], "after {number}");
        }
        assert!(all(&log, Some(17)).is_empty());
        assert!(all(&log, Some(u64::MAX)).is_empty());
    }

    #[test]
    fn a_failed_answer_has_no_mark_and_only_its_first_end_counts() {
        let log = log();
        log.push("a");
        log.end(failed());
        log.end(AnswerEnd::sample());
        assert_eq!(all(&log, Some(0)), [(1, "+a".to_owned()), (2, "error".to_owned())]);
        assert!(all(&log, Some(2)).is_empty());
    }

    #[test]
    fn whoever_heard_more_than_was_written_down_learns_that_it_is_over() {
        let log = log();
        log.push("a");
        log.end(AnswerEnd::ServerLost { code: Cow::Borrowed("code") });
        assert_eq!(all(&log, Some(1)), [(2, "error".to_owned())]);
        assert_eq!(all(&log, Some(7)), [(8, "error".to_owned())]);
    }

    #[test]
    fn what_goes_on_elsewhere_ends_without_a_word() {
        let log = log();
        log.push("a");
        log.end(AnswerEnd::Away);
        assert_eq!(all(&log, Some(0)), [(1, "+a".to_owned())]);
    }

    #[test]
    fn listeners_go_at_their_own_pace() {
        let log = log();
        let mut listener = Listener::new(Arc::clone(&log), None);
        log.push("a");
        assert_eq!(taken(&mut listener).len(), 2);
        assert!(taken(&mut listener).is_empty() && !listener.is_over());
        for _ in 0..BATCH + 1 {
            log.push("b");
        }
        assert_eq!(taken(&mut listener).len(), BATCH);
        log.end(AnswerEnd::sample());
        let rest = taken(&mut listener);
        assert_eq!(rest.last().map(|(number, _)| *number), Some(u64::try_from(BATCH).unwrap() + 4));
        assert!(listener.is_over());
    }

    #[tokio::test]
    async fn waiting_misses_nothing() {
        let log = log();
        let listener = Listener::new(Arc::clone(&log), Some(0));
        let waiting = tokio::spawn({
            let listener = Listener::new(Arc::clone(&log), Some(0));
            async move { listener.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        log.push("a");
        waiting.await.unwrap();
        listener.ready().await;
        log.end(AnswerEnd::sample());
        assert_eq!(listener.whole().await, ("a".to_owned(), AnswerEnd::sample()));
    }

    #[test]
    fn what_is_written_down_is_read_as_it_was() {
        let source = log();
        for delta in ["a".to_owned(), "ö".repeat(100), "c".repeat(20_000), "d".to_owned()] {
            source.push(&delta);
        }
        source.end(AnswerEnd::sample());
        let copy = log();
        let (first, known) = source.since(0).unwrap();
        assert_eq!(known, 4);
        copy.fill(&first);
        // A part that comes a second time, and one that overlaps, add nothing twice.
        copy.fill(&first);
        copy.fill(&source.since(2).unwrap().0);
        assert!(source.since(4).is_none());
        copy.end(AnswerEnd::sample());
        assert_eq!(all(&copy, None), all(&source, None));
        assert_eq!(copy.content(), source.content());
        // Parts follow each other as their texts do.
        let (rest, _) = source.since(1).unwrap();
        let joined = [&source.content().1[..1], &rest.lengths.unwrap()].concat();
        assert_eq!(joined, source.content().1);
    }

    #[test]
    fn no_text_is_lost_to_lengths_that_do_not_fit() {
        let deltas = |lengths: Option<&[u8]>| split("zwölf", lengths).collect::<Vec<_>>();
        assert_eq!(deltas(None), ["zwölf"]);
        assert_eq!(deltas(Some(&[2, 4])), ["zw", "ölf"]);
        // Too few, too many, in the middle of a character, too long, cut off, nothing.
        assert_eq!(deltas(Some(&[2])), ["zw", "ölf"]);
        assert_eq!(deltas(Some(&[6, 9])), ["zwölf"]);
        assert_eq!(deltas(Some(&[3, 3])), ["zwölf"]);
        assert_eq!(deltas(Some(&[0xff; 12])), ["zwölf"]);
        assert_eq!(deltas(Some(&[0x82])), ["zwölf"]);
        assert_eq!(deltas(Some(&[0, 2])), ["zwölf"]);
        assert!(split("", Some(&[1])).next().is_none());
    }

    #[test]
    fn a_log_that_nobody_ends_is_lost() {
        let log = log();
        drop(LastWord(Arc::clone(&log)));
        assert_eq!(all(&log, Some(0)), [(1, "error".to_owned())]);
    }
}
