//! An answer's events as server-sent events: the same bytes whoever makes the answer and whenever they are asked for,
//! but for heartbeats.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::api::tenant::{ChatDone, ChatError, ChatStarted};
use crate::chat::{AnswerEnd, AnswerEvent, Listener};
use crate::ids::{ChatSessionId, MessageId};

/// How often a silent stream says that it is alive. Proxies cut one that says nothing for half a minute or so.
const HEARTBEAT: Duration = Duration::from_secs(3);
const HEARTBEAT_FRAME: &[u8] = b": heartbeat\n\n";

/// The stream of what a listener hears.
pub(super) fn stream(listener: Listener) -> Response {
    let now = Instant::now();
    let heartbeat = Box::pin(tokio::time::sleep_until(now + HEARTBEAT));
    let frames = Frames { listener, heartbeat, spoke: now, begun: false };
    let frames = futures::stream::unfold(frames, async |mut frames| {
        let bytes = frames.next().await?;
        Some((Ok::<_, Infallible>(bytes), frames))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would show the whole answer at its end.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Frames {
    listener: Listener,
    /// Goes off no later than a heartbeat is due. It is set anew when it does, not with every event.
    heartbeat: Pin<Box<Sleep>>,
    /// When something was last said.
    spoke: Instant,
    begun: bool,
}

impl Frames {
    /// What there is to say, as soon as there is anything. Events that have come together leave together.
    async fn next(&mut self) -> Option<Bytes> {
        let Self { listener, heartbeat, spoke, begun } = self;
        loop {
            let mut frames = BytesMut::new();
            let (session_id, message_id) = (listener.session_id(), listener.message_id());
            listener.take(|number, event| frame(&mut frames, number, event, session_id, message_id));
            if frames.is_empty() && listener.is_over() {
                return None;
            }
            // The first byte does not wait for the model.
            let first = !std::mem::replace(begun, true);
            if frames.is_empty() && first {
                frames.extend_from_slice(HEARTBEAT_FRAME);
            }
            if !frames.is_empty() {
                *spoke = Instant::now();
                return Some(frames.freeze());
            }
            tokio::select! {
                () = listener.ready() => {}
                () = heartbeat.as_mut() => {
                    let (now, due) = (Instant::now(), *spoke + HEARTBEAT);
                    if now < due {
                        heartbeat.as_mut().reset(due);
                        continue;
                    }
                    heartbeat.as_mut().reset(now + HEARTBEAT);
                    *spoke = now;
                    return Some(Bytes::from_static(HEARTBEAT_FRAME));
                }
            }
        }
    }
}

/// One piece of a streamed answer: `ChatDelta` without a copy of the text.
#[derive(Serialize)]
struct Delta<'a> {
    content: &'a str,
}

fn frame(frames: &mut BytesMut, number: u64, event: AnswerEvent<'_>, session_id: ChatSessionId, message_id: MessageId) {
    let (session_id, message_id) = (session_id.as_uuid(), message_id.as_uuid());
    // Writing into memory does not fail, here and below.
    let _ = writeln!(frames, "id: {number}");
    match event {
        AnswerEvent::Started => data(frames, Some("started"), &ChatStarted { session_id, message_id }),
        AnswerEvent::Delta(content) => data(frames, None, &Delta { content }),
        AnswerEvent::Ended(AnswerEnd::Done {
            model,
            assistant,
            usage,
            stopped,
            degraded,
            from_cache,
            queries_remaining,
        }) => {
            let done = ChatDone {
                session_id,
                message_id,
                model: model.clone(),
                assistant: assistant.clone(),
                usage: *usage,
                stopped: *stopped,
                degraded: *degraded,
                from_cache: *from_cache,
                queries_remaining: *queries_remaining,
            };
            data(frames, Some("done"), &done);
        }
        AnswerEvent::Ended(end) => {
            let (code, message) = end.failure().unwrap_or_default();
            let (code, message) = (code.to_owned(), message.to_owned());
            data(frames, Some("error"), &ChatError { session_id, message_id, code, message });
        }
        AnswerEvent::Mark => frames.extend_from_slice(b"data: [DONE]\n\n"),
    }
}

/// An event's name and data. JSON has no line breaks of its own.
fn data(frames: &mut BytesMut, name: Option<&str>, data: &impl Serialize) {
    if let Some(name) = name {
        let _ = writeln!(frames, "event: {name}");
    }
    frames.extend_from_slice(b"data: ");
    // These types always become JSON: they are texts and numbers.
    let _ = serde_json::to_writer(frames.writer(), data);
    frames.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_their_numbers_and_one_line_of_data() {
        let (session, message) = (ChatSessionId::new(), MessageId::new());
        let mut frames = BytesMut::new();
        let done = AnswerEnd::sample();
        let events =
            [AnswerEvent::Started, AnswerEvent::Delta("a\n\"b\""), AnswerEvent::Ended(&done), AnswerEvent::Mark];
        for (number, event) in (0..).zip(events) {
            frame(&mut frames, number, event, session, message);
        }
        let expected = format!(
            "id: 0\nevent: started\ndata: {{\"session_id\":\"{session}\",\"message_id\":\"{message}\"}}\n\n\
             id: 1\ndata: {{\"content\":\"a\\n\\\"b\\\"\"}}\n\n\
             id: 2\nevent: done\ndata: {{\"session_id\":\"{session}\",\"message_id\":\"{message}\",\"model\":\"m\",\
             \"usage\":{{\"input_tokens\":1,\"output_tokens\":2,\"reported\":true}},\"degraded\":false,\"from_cache\":false,\"queries_remaining\":null}}\n\n\
             id: 3\ndata: [DONE]\n\n"
        );
        assert_eq!(String::from_utf8(frames.to_vec()).unwrap(), expected);
    }
}
