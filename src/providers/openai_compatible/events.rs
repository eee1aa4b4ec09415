//! The events of one answer: from bytes to text, usage and an honest end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sse_stream::SseByteStream;
use tokio::time::{Instant, Sleep};

use crate::providers::error::{Cause, ProviderError, UpstreamRefusal};
use crate::providers::{ChatEvent, FinishReason, Usage};

/// Bytes that may come before an event is complete. The longest honest event carries one delta.
const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Bytes of text in one answer: a server that never stops must not fill the memory of whoever collects it.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// How long a server that has given its finish reason may take to add usage and `[DONE]`. The answer is whole by
/// then, so that running out of this time is no error.
const EPILOGUE: Duration = Duration::from_secs(5);
/// How long the connection is read after `[DONE]` for its end, without which it cannot be used again.
const DRAIN: Duration = Duration::from_secs(1);

/// Why a stream was given up, where no other error says so.
#[derive(Debug, thiserror::Error)]
enum Broken {
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
    #[error("read an event")]
    Malformed(#[source] serde_json::Error),
}

/// What has been learned of an answer so far.
#[derive(Default)]
pub(super) struct Answer {
    text_bytes: usize,
    seen_choice: bool,
    finish_reason: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Answer {
    /// Takes in one JSON object of the answer and returns its text, if it has any.
    ///
    /// # Errors
    /// If it is an error object or not understood.
    pub(super) fn read(&mut self, json: &str) -> Result<Option<String>, ProviderError> {
        let chunk: Chunk<'_> = serde_json::from_str(json).map_err(|error| self.broken(Broken::Malformed(error)))?;
        if chunk.error.is_some() {
            return Err(self.refused(json));
        }
        // Some servers repeat a running total in each chunk: the latest is the whole.
        if let Some(usage) = chunk.usage.and_then(WireUsage::whole) {
            self.usage = Some(usage);
        }
        let Some(choice) = chunk.choices else { return Ok(None) };
        self.seen_choice = true;
        if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
            self.finish_reason = Some(finish_reason(&reason));
        }
        let text = choice.delta.and_then(|delta| delta.content).filter(|text| !text.is_empty());
        self.text_bytes += text.as_ref().map_or(0, String::len);
        if self.text_bytes > MAX_ANSWER_BYTES {
            return Err(ProviderError::Interrupted(Broken::AnswerTooLarge.into()));
        }
        Ok(text)
    }

    pub(super) fn has_choice(&self) -> bool {
        self.seen_choice
    }

    pub(super) fn finished(&self) -> ChatEvent {
        let finish_reason = self.finish_reason.unwrap_or(FinishReason::Other);
        ChatEvent::Finished { usage: self.usage, finish_reason }
    }

    fn delivered(&self) -> bool {
        self.text_bytes > 0
    }

    fn broken(&self, cause: impl Into<Cause>) -> ProviderError {
        ProviderError::broken(self.delivered(), cause)
    }

    /// An error object: its own kind while another attempt is still possible, else an interruption.
    fn refused(&self, json: &str) -> ProviderError {
        let refusal = UpstreamRefusal::parse(None, json.as_bytes());
        if self.delivered() { ProviderError::Interrupted(refusal.into()) } else { refusal.into_error(None) }
    }
}

/// The stream of one answer.
pub(super) struct Events {
    /// `None` once the answer has ended, so that the upstream call ends with it and not with this value.
    source: Option<SseByteStream<Bounded>>,
    unparsed: Arc<AtomicUsize>,
    answer: Answer,
    between_tokens: Duration,
    deadline: Instant,
    /// Not moved for each event: when it fires early it is set again to `deadline`.
    alarm: Pin<Box<Sleep>>,
}

impl Events {
    /// `between_tokens`: the longest silence between two events.
    pub(super) fn new(body: BoxStream<'static, reqwest::Result<Bytes>>, between_tokens: Duration) -> Self {
        let unparsed = Arc::new(AtomicUsize::new(0));
        let deadline = Instant::now() + between_tokens;
        Self {
            source: Some(SseByteStream::new(Bounded { body, unparsed: Arc::clone(&unparsed) })),
            unparsed,
            answer: Answer::default(),
            between_tokens,
            deadline,
            alarm: Box::pin(tokio::time::sleep_until(deadline)),
        }
    }

    /// One event's data: `None` if it gives the reader nothing.
    fn take_in(&mut self, event: &sse_stream::Sse) -> Option<Result<String, ProviderError>> {
        // Events without data are not counted as progress either.
        let data = event.data.as_deref()?;
        self.unparsed.store(0, Ordering::Relaxed);
        if event.event.as_deref() == Some("error") {
            return Some(Err(self.answer.refused(data)));
        }
        let text = self.answer.read(data).transpose();
        if self.answer.finish_reason.is_some() {
            self.deadline = Instant::now() + EPILOGUE.min(self.between_tokens);
            self.alarm.as_mut().reset(self.deadline);
        } else {
            self.deadline = Instant::now() + self.between_tokens;
        }
        text
    }

    /// The end, from whatever cause: fine after a finish reason, otherwise an error.
    fn end(&mut self, cause: Broken) -> Result<ChatEvent, ProviderError> {
        self.source = None;
        if self.answer.finish_reason.is_some() {
            return Ok(self.answer.finished());
        }
        Err(match cause {
            Broken::Silence => ProviderError::Timeout(cause.into()),
            _ => self.answer.broken(cause),
        })
    }

    fn read_error(&self, error: sse_stream::Error) -> Broken {
        if self.unparsed.load(Ordering::Relaxed) > MAX_EVENT_BYTES {
            return Broken::EventTooLarge;
        }
        Broken::Read(error)
    }

    /// `[DONE]`. The end of the body is right behind it as a rule; a reader that waits for it keeps the connection,
    /// one that drops the body loses it. So if it is not here yet somebody else waits.
    fn done(&mut self, cx: &mut Context<'_>) -> ChatEvent {
        if let Some(mut source) = self.source.take()
            && source.poll_next_unpin(cx).is_pending()
        {
            tokio::spawn(async move {
                let rest = async { while let Some(Ok(_)) = source.next().await {} };
                let _ = tokio::time::timeout(DRAIN, rest).await;
            });
        }
        self.answer.finished()
    }
}

impl Stream for Events {
    type Item = Result<ChatEvent, ProviderError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let Some(source) = &mut this.source else { return Poll::Ready(None) };
            match source.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(event))) => {
                    if event.data.as_deref().is_some_and(|data| data.trim() == "[DONE]") {
                        return Poll::Ready(Some(Ok(this.done(cx))));
                    }
                    match this.take_in(&event) {
                        Some(Ok(text)) => return Poll::Ready(Some(Ok(ChatEvent::Delta(text)))),
                        Some(Err(error)) => {
                            this.source = None;
                            return Poll::Ready(Some(Err(error)));
                        }
                        None => {}
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    let cause = this.read_error(error);
                    return Poll::Ready(Some(this.end(cause)));
                }
                Poll::Ready(None) => return Poll::Ready(Some(this.end(Broken::Ended))),
                Poll::Pending => {
                    std::task::ready!(this.alarm.as_mut().poll(cx));
                    if Instant::now() >= this.deadline {
                        return Poll::Ready(Some(this.end(Broken::Silence)));
                    }
                    this.alarm.as_mut().reset(this.deadline);
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

/// A chunk of a streamed answer, or the whole of another. Text is read straight into the `String` that is handed
/// on: borrowing it first would only copy it a second time. What is not named here is skipped unread.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, deserialize_with = "first_choice")]
    choices: Option<Choice>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default, alias = "message")]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokens>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct PromptTokens {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl WireUsage {
    /// Half a count is no count. An explicit zero is one.
    fn whole(self) -> Option<Usage> {
        let (input_tokens, output_tokens) = (self.prompt_tokens?, self.completion_tokens?);
        Some(Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
            reported: true,
        })
    }
}

fn finish_reason(word: &str) -> FinishReason {
    match word {
        "stop" | "eos" => FinishReason::Stop,
        "length" | "max_tokens" => FinishReason::Length,
        "content_filter" => FinishReason::ContentFilter,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        _ => FinishReason::Other,
    }
}

/// Reads only the first of the choices, without a list around it: no more than one is ever asked for.
fn first_choice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Choice>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Option<Choice>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of choices")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let first = seq.next_element()?;
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    deserializer.deserialize_any(First)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BETWEEN: Duration = Duration::from_secs(60);

    /// Feeds `body` in pieces of `size` bytes; `Err` is the code of the error the stream ended with.
    async fn read(body: &str, size: usize) -> (String, Result<ChatEvent, &'static str>) {
        let pieces: Vec<_> = body.as_bytes().chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut events = Events::new(futures::stream::iter(pieces).boxed(), BETWEEN);
        let mut text = String::new();
        let end = loop {
            match events.next().await.expect("an end") {
                Ok(ChatEvent::Delta(delta)) => text.push_str(&delta),
                Ok(finished) => break Ok(finished),
                Err(error) => break Err(error.code()),
            }
        };
        assert!(events.next().await.is_none(), "nothing follows the end");
        (text, end)
    }

    fn finished(usage: Option<(u64, u64)>, finish_reason: FinishReason) -> Result<ChatEvent, &'static str> {
        let usage = usage.map(|(input_tokens, output_tokens)| Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: 0,
            reported: true,
        });
        Ok(ChatEvent::Finished { usage, finish_reason })
    }

    const TEXT: &str =
        "data: {\"choices\":[{\"delta\":{\"content\":\"h\u{e9}\\n\"},\"finish_reason\":null}],\"usage\":null}\n\n";
    const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":0}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    #[tokio::test]
    async fn an_answer_reads_the_same_however_it_is_split() {
        let body = format!(": beat\n\n{TEXT}{TEXT}{STOP}{USAGE}{DONE}");
        for size in 1..=body.len() {
            let (text, end) = read(&body, size).await;
            assert_eq!(text, "h\u{e9}\nh\u{e9}\n");
            assert_eq!(end, finished(Some((3, 0)), FinishReason::Stop));
        }
        let (text, end) = read(&body.replace('\n', "\r\n"), 7).await;
        assert_eq!((text.len(), end), (8, finished(Some((3, 0)), FinishReason::Stop)));
    }

    #[tokio::test]
    async fn the_end_is_told_honestly() {
        let end = async |body: &str| read(body, 1000).await.1;
        assert_eq!(end(&format!("{TEXT}{STOP}")).await, finished(None, FinishReason::Stop), "no [DONE]");
        assert_eq!(end(&format!("{TEXT}{DONE}")).await, finished(None, FinishReason::Other), "no reason");
        assert_eq!(end(TEXT).await, Err("provider_interrupted"));
        assert_eq!(end("").await, Err("provider_unavailable"));
        assert_eq!(end(&format!("{TEXT}data: {{\"cho\n\n")).await, Err("provider_interrupted"));
        assert_eq!(end("data: <html>\n\n").await, Err("provider_unavailable"));
        let error = "data: {\"error\":{\"message\":\"m\",\"code\":429}}\n\n";
        assert_eq!(end(error).await, Err("provider_rate_limited"));
        assert_eq!(end(&format!("{TEXT}{error}")).await, Err("provider_interrupted"));
        assert_eq!(end("event: error\ndata: {\"type\":\"server_error\"}\n\n").await, Err("provider_unavailable"));
    }

    #[tokio::test]
    async fn odd_chunks_are_read() {
        let odd = concat!(
            "data: {\"choices\":null,\"prompt_filter_results\":[]}\n\n",
            "data: {\"choices\":[{\"delta\":null,\"finish_reason\":\"\"}],\"error\":null}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}},{\"delta\":{\"content\":\"b\"}}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n",
            "data: {\"choices\":[{\"finish_reason\":\"max_tokens\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":9}}\n\ndata:[DONE] \n\n",
        );
        let (text, end) = read(odd, 50).await;
        assert_eq!((text.as_str(), end), ("a", finished(Some((1, 2)), FinishReason::Length)));
    }

    #[tokio::test]
    async fn size_is_bounded() {
        let endless = format!("data: {}", "x".repeat(2 * MAX_EVENT_BYTES));
        assert_eq!(read(&endless, 4096).await.1, Err("provider_unavailable"));
        let comments = format!("{TEXT}{}", ": beat\n\n".repeat(MAX_EVENT_BYTES / 4));
        assert_eq!(read(&comments, 4096).await.1, Err("provider_interrupted"));
        let no_data = "event: x\n\n".repeat(MAX_EVENT_BYTES / 4);
        assert_eq!(read(&no_data, 4096).await.1, Err("provider_unavailable"));
        let long = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "y".repeat(900_000));
        assert_eq!(read(&long.repeat(10), 65536).await.1, Err("provider_interrupted"));
    }

    #[tokio::test]
    async fn silence_is_a_timeout_unless_the_answer_is_whole() {
        let silent = async |body: String| {
            let body = futures::stream::iter([Ok(Bytes::from(body))]).chain(futures::stream::pending());
            let events = Events::new(body.boxed(), Duration::from_millis(30));
            events.map(|event| event.map_err(|error| error.code())).collect::<Vec<_>>().await
        };
        assert_eq!(silent(TEXT.to_owned()).await.pop(), Some(Err("provider_timeout")));
        assert_eq!(silent(format!("{TEXT}{STOP}")).await.pop(), Some(finished(None, FinishReason::Stop)));
    }
}
