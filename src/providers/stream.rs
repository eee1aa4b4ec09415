//! Reading an answer, in whichever wire format: from bytes to neutral events, with bounds and an honest end.
//!
//! A wire format says what one event means ([`Wire`]). Everything all of them share is here: server-sent events that
//! are split anywhere, silence, sizes, answers that end without saying so, and servers that do not stream.

mod answer;
mod tool_calls;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use reqwest::Response;
use sse_stream::SseByteStream;
use tokio::time::{Instant, Sleep};

pub(super) use self::answer::Answer;
pub(super) use self::tool_calls::CallPiece;
use super::client::{ProviderClient, read_body};
use super::error::ProviderError;
use super::{ChatEvent, ChatStream};
use crate::json;

/// Bytes that may come before an event is complete. The longest honest event carries one delta, or a whole tool call.
const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Bytes of one answer: a server that never stops must not fill the memory of whoever collects it.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// How long a server that has given its finish reason may take to add usage and to end. The answer is whole by then,
/// so that running out of this time is no error.
const EPILOGUE: Duration = Duration::from_secs(5);
/// How long the connection is read after the last event for its end, without which it cannot be used again.
const DRAIN: Duration = Duration::from_secs(1);
/// How many times the silence between two events may last while the server shows that it is alive. Without an end a
/// server could do that for ever.
const ALIVE_FACTOR: u32 = 3;

/// Why a stream was given up, where no other error says so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the stream ended without a finish reason")]
    Ended,
    #[error("an event is larger than allowed")]
    EventTooLarge,
    #[error("the answer is larger than allowed")]
    AnswerTooLarge,
    #[error("no event came in time")]
    Silence,
    #[error("read the stream")]
    Read(#[source] sse_stream::Error),
    /// Without what was read: it may repeat the prompt or the key.
    #[error("read an event: {0}")]
    Malformed(String),
    #[error("the answer has more tool calls than allowed")]
    TooManyCalls,
    #[error("a tool call has no name")]
    NamelessCall,
}

/// What an event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of the answer.
    More,
    /// Nothing but a sign of life.
    Alive,
    /// The last event of the answer.
    End,
}

/// What the events of one wire format mean.
pub(super) trait Wire: Send + Unpin + 'static {
    /// Takes in the data of one event, named if the format names its events.
    ///
    /// # Errors
    /// If it is an error or not understood.
    fn read(&mut self, event: Option<&str>, data: &str, answer: &mut Answer) -> Result<Step, ProviderError>;

    /// Takes in the whole answer of a server that does not stream.
    ///
    /// # Errors
    /// The same.
    fn read_whole(&mut self, json: &str, answer: &mut Answer) -> Result<(), ProviderError>;
}

/// The events of the answer that `response` carries.
pub(super) async fn events(
    client: &ProviderClient,
    response: Response,
    wire: impl Wire,
) -> Result<ChatStream, ProviderError> {
    let between_tokens = client.timeouts().between_tokens;
    if is_json(&response) {
        return whole_answer(response, between_tokens, wire).await;
    }
    Ok(Events::new(response.bytes_stream().boxed(), between_tokens, wire).boxed())
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| {
        kind.trim_start().get(..16).is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
    })
}

/// Reads the answer of a server that ignored that a stream was asked for.
async fn whole_answer(response: Response, between: Duration, mut wire: impl Wire) -> Result<ChatStream, ProviderError> {
    let body = read_body(response, MAX_ANSWER_BYTES, between).await?;
    let body = std::str::from_utf8(&body).map_err(|error| ProviderError::Unavailable(error.into()))?;
    if json::elements(body.as_bytes()) > json::MOST_ELEMENTS {
        return Err(ProviderError::Unavailable("the answer has more elements than allowed".into()));
    }
    let mut answer = Answer::default();
    wire.read_whole(body, &mut answer)?;
    if !answer.begun() {
        return Err(ProviderError::Unavailable("the answer is empty".into()));
    }
    answer.conclude()?;
    Ok(futures::stream::iter(std::iter::from_fn(move || answer.next().map(Ok))).boxed())
}

/// The stream of one answer.
struct Events<W> {
    /// `None` once the answer has ended, so that the upstream call ends with it and not with this value.
    source: Option<SseByteStream<Bounded>>,
    unparsed: Arc<AtomicUsize>,
    answer: Answer,
    /// What comes after the last event, if that is not the end of a whole answer.
    failure: Option<ProviderError>,
    wire: W,
    between_tokens: Duration,
    deadline: Instant,
    /// Until when signs of life are enough.
    patience: Instant,
    /// Not moved for each event: when it fires early it is set again to `deadline`.
    alarm: Pin<Box<Sleep>>,
}

impl<W: Wire> Events<W> {
    /// `between_tokens`: the longest silence between two events.
    fn new(body: BoxStream<'static, reqwest::Result<Bytes>>, between_tokens: Duration, wire: W) -> Self {
        let unparsed = Arc::new(AtomicUsize::new(0));
        let now = Instant::now();
        let deadline = now + between_tokens;
        Self {
            source: Some(SseByteStream::new(Bounded { body, unparsed: Arc::clone(&unparsed) })),
            unparsed,
            answer: Answer::default(),
            failure: None,
            wire,
            between_tokens,
            deadline,
            patience: now + between_tokens * ALIVE_FACTOR,
            alarm: Box::pin(tokio::time::sleep_until(deadline)),
        }
    }

    fn take_in(&mut self, event: &sse_stream::Sse, cx: &mut Context<'_>) {
        // Events without data are not counted as progress.
        let Some(data) = event.data.as_deref() else { return };
        self.unparsed.store(0, Ordering::Relaxed);
        match self.wire.read(event.event.as_deref(), data, &mut self.answer) {
            Ok(Step::End) => self.finish(cx),
            Ok(step) => self.set_deadline(step),
            Err(error) => self.fail(error),
        }
    }

    fn set_deadline(&mut self, step: Step) {
        let now = Instant::now();
        if self.answer.has_finish_reason() {
            self.deadline = now + EPILOGUE.min(self.between_tokens);
            self.alarm.as_mut().reset(self.deadline);
        } else if step == Step::Alive {
            self.deadline = (now + self.between_tokens).min(self.patience);
        } else {
            self.deadline = now + self.between_tokens;
            self.patience = now + self.between_tokens * ALIVE_FACTOR;
        }
    }

    /// The body ended or failed: fine after a finish reason, otherwise an error.
    fn end(&mut self, cause: Broken) {
        if self.answer.has_finish_reason() {
            self.conclude();
            return;
        }
        self.fail(match cause {
            Broken::Silence => ProviderError::Timeout(cause.into()),
            _ => self.answer.broken(cause),
        });
    }

    fn fail(&mut self, error: ProviderError) {
        self.source = None;
        self.failure = Some(error);
    }

    fn conclude(&mut self) {
        self.source = None;
        self.failure = self.answer.conclude().err();
    }

    fn read_error(&self, error: sse_stream::Error) -> Broken {
        if self.unparsed.load(Ordering::Relaxed) > MAX_EVENT_BYTES {
            return Broken::EventTooLarge;
        }
        Broken::Read(error)
    }

    /// The format's last event. The end of the body is right behind it as a rule; a reader that waits for it keeps the
    /// connection, one that drops the body loses it. So if it is not here yet somebody else waits.
    fn finish(&mut self, cx: &mut Context<'_>) {
        if !self.answer.begun() {
            self.fail(self.answer.broken(Broken::Ended));
            return;
        }
        if let Some(mut source) = self.source.take()
            && source.poll_next_unpin(cx).is_pending()
        {
            tokio::spawn(async move {
                let rest = async { while let Some(Ok(_)) = source.next().await {} };
                let _ = tokio::time::timeout(DRAIN, rest).await;
            });
        }
        self.conclude();
    }
}

impl<W: Wire> Stream for Events<W> {
    type Item = Result<ChatEvent, ProviderError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.answer.next() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(source) = &mut this.source else { return Poll::Ready(this.failure.take().map(Err)) };
            match source.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(event))) => this.take_in(&event, cx),
                Poll::Ready(Some(Err(error))) => {
                    let cause = this.read_error(error);
                    this.end(cause);
                }
                Poll::Ready(None) => this.end(Broken::Ended),
                Poll::Pending => {
                    std::task::ready!(this.alarm.as_mut().poll(cx));
                    if Instant::now() >= this.deadline {
                        this.end(Broken::Silence);
                    } else {
                        this.alarm.as_mut().reset(this.deadline);
                    }
                }
            }
        }
    }
}

/// The body, failing once too much of it came without a whole event. The parser below would buffer without end.
struct Bounded {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    unparsed: Arc<AtomicUsize>,
}

/// A failure of the body, as the parser wants it.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("the connection failed")]
    Transport(#[source] reqwest::Error),
    #[error("too many bytes without an event")]
    TooMuch,
}

impl Stream for Bounded {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match std::task::ready!(self.body.poll_next_unpin(cx)) {
            Some(Ok(bytes)) => {
                let before = self.unparsed.fetch_add(bytes.len(), Ordering::Relaxed);
                Some(if before + bytes.len() > MAX_EVENT_BYTES { Err(BodyError::TooMuch) } else { Ok(bytes) })
            }
            Some(Err(error)) => Some(Err(BodyError::Transport(error.without_url()))),
            None => None,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::providers::{FinishReason, ToolCallDelta, Usage};

    /// An answer that was read to its end.
    #[derive(Debug, Default, PartialEq)]
    pub(in crate::providers) struct Heard {
        pub(in crate::providers) text: String,
        pub(in crate::providers) reasoning: String,
        /// Id, name and arguments of each tool call.
        pub(in crate::providers) calls: Vec<(String, String, String)>,
        pub(in crate::providers) usage: Option<Usage>,
        /// Why it ended, or the code of the error.
        pub(in crate::providers) end: Option<Result<FinishReason, &'static str>>,
    }

    impl Heard {
        pub(in crate::providers) fn take_in(&mut self, event: Result<ChatEvent, ProviderError>) {
            assert_eq!(self.end, None, "nothing follows the end");
            match event {
                Ok(ChatEvent::Delta(text)) => {
                    assert!(!text.is_empty());
                    self.text.push_str(&text);
                }
                Ok(ChatEvent::Reasoning(text)) => {
                    assert!(!text.is_empty());
                    self.reasoning.push_str(&text);
                }
                Ok(ChatEvent::ToolCall(ToolCallDelta { index, id, name, arguments })) => {
                    if let (Some(id), Some(name)) = (id, name) {
                        assert_eq!(index as usize, self.calls.len());
                        self.calls.push((id, name, arguments));
                    } else {
                        self.calls[index as usize].2.push_str(&arguments);
                    }
                }
                Ok(ChatEvent::Finished { usage, finish_reason }) => {
                    self.usage = usage;
                    self.end = Some(Ok(finish_reason));
                }
                Err(error) => self.end = Some(Err(error.code())),
            }
        }
    }

    pub(in crate::providers) fn usage(input: u64, output: u64, cached: u64) -> Option<Usage> {
        Some(Usage { input_tokens: input, output_tokens: output, cached_input_tokens: cached, reported: true })
    }

    /// Feeds `body` in pieces of `size` bytes.
    pub(in crate::providers) async fn read(wire: impl Wire, body: &str, size: usize) -> Heard {
        let pieces: Vec<_> = body.as_bytes().chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut events = Events::new(futures::stream::iter(pieces).boxed(), Duration::from_secs(60), wire);
        let mut heard = Heard::default();
        while let Some(event) = events.next().await {
            heard.take_in(event);
        }
        assert!(heard.end.is_some(), "every answer has an end");
        assert!(events.next().await.is_none());
        heard
    }

    /// The whole answer of a server that does not stream.
    pub(in crate::providers) fn whole(mut wire: impl Wire, json: &str) -> Heard {
        let mut heard = Heard::default();
        let mut answer = Answer::default();
        let read = wire.read_whole(json, &mut answer).and_then(|()| answer.conclude());
        while let Some(event) = answer.next() {
            heard.take_in(Ok(event));
        }
        if let Err(error) = read {
            heard.take_in(Err(error));
        }
        heard
    }

    /// A format of nothing but words.
    struct Plain;

    impl Wire for Plain {
        fn read(&mut self, _: Option<&str>, data: &str, answer: &mut Answer) -> Result<Step, ProviderError> {
            answer.begin();
            match data {
                "ping" => return Ok(Step::Alive),
                "stop" => answer.finish(FinishReason::Stop),
                "end" => return Ok(Step::End),
                text => answer.text(text.to_owned())?,
            }
            Ok(Step::More)
        }

        fn read_whole(&mut self, json: &str, answer: &mut Answer) -> Result<(), ProviderError> {
            self.read(None, json, answer).map(|_| ())
        }
    }

    #[tokio::test]
    async fn size_is_bounded() {
        let end = async |body: &str| read(Plain, body, 65536).await.end;
        let endless = format!("data: {}", "x".repeat(2 * MAX_EVENT_BYTES));
        assert_eq!(end(&endless).await, Some(Err("provider_unavailable")));
        let comments = format!("data: a\n\n{}", ": beat\n\n".repeat(MAX_EVENT_BYTES / 4));
        assert_eq!(end(&comments).await, Some(Err("provider_interrupted")));
        let no_data = "event: x\n\n".repeat(MAX_EVENT_BYTES / 4);
        assert_eq!(end(&no_data).await, Some(Err("provider_unavailable")));
        let long = format!("data: {}\n\n", "y".repeat(900_000));
        assert_eq!(end(&long.repeat(10)).await, Some(Err("provider_interrupted")));
    }

    const SHORT: Duration = Duration::from_millis(40);

    async fn slowly(body: BoxStream<'static, reqwest::Result<Bytes>>) -> (Heard, Duration) {
        let start = Instant::now();
        let mut heard = Heard::default();
        let mut events = Events::new(body, SHORT, Plain);
        while let Some(event) = events.next().await {
            heard.take_in(event);
        }
        (heard, start.elapsed())
    }

    #[tokio::test]
    async fn silence_is_a_timeout_unless_the_answer_is_whole() {
        let silent = async |body: &'static str| {
            let body = futures::stream::iter([Ok(Bytes::from_static(body.as_bytes()))]);
            slowly(body.chain(futures::stream::pending()).boxed()).await.0.end
        };
        assert_eq!(silent("data: a\n\n").await, Some(Err("provider_timeout")));
        assert_eq!(silent("data: a\n\ndata: stop\n\n").await, Some(Ok(FinishReason::Stop)));
    }

    #[tokio::test]
    async fn signs_of_life_lengthen_the_patience_and_do_not_abolish_it() {
        let pings = futures::stream::unfold((), |()| async {
            tokio::time::sleep(SHORT / 8).await;
            Some((Ok(Bytes::from_static(b"data: ping\n\n")), ()))
        });
        let (heard, took) = slowly(pings.boxed()).await;
        assert_eq!(heard.end, Some(Err("provider_timeout")));
        assert!(took >= SHORT * ALIVE_FACTOR, "{took:?}");
    }
}
