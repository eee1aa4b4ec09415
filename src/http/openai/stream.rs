//! A streamed answer: events are sent as they come, several in one piece if they come together, and heartbeats while the
//! model is silent. Dropped, it drops the call.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use futures::future::BoxFuture;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::chunks::{self, Chunks};
use super::error::OpenAiError;
use crate::chat::{ChatError, MeteredStream};

/// How often it is looked at whether anything was sent. A silent stream says that it is alive after twice that at the
/// latest: proxies cut one that says nothing for half a minute or so.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A piece as large as this is sent though more could be had at once.
const PIECE: usize = 16 * 1024;

/// A call that has not said anything yet.
pub(super) type Calling = BoxFuture<'static, Result<MeteredStream, ChatError>>;

/// Where the events come from.
enum Source {
    /// The model has said nothing yet.
    Calling(Calling),
    Speaking(Box<MeteredStream>, Chunks),
    Ended,
}

/// What a stream is told of the request.
#[derive(Debug)]
pub(super) struct Terms {
    /// The model by the name it was asked for.
    pub(super) model: String,
    /// When it was asked, in seconds since 1970.
    pub(super) created: i64,
    /// Whether it is to say what the answer cost.
    pub(super) include_usage: bool,
}

struct Events {
    source: Source,
    terms: Terms,
    heartbeat: Interval,
    /// Whether anything was sent since the last look.
    sent: bool,
}

/// Streams an answer that has begun.
pub(super) fn speaking(stream: MeteredStream, terms: Terms) -> Response {
    let chunks = Chunks::new(stream.call_id, &terms.model, terms.created, terms.include_usage);
    respond(Source::Speaking(Box::new(stream), chunks), terms, HEARTBEAT)
}

/// Streams an answer that has not begun. The first heartbeat goes out at once.
pub(super) fn calling(calling: Calling, terms: Terms) -> Response {
    respond(Source::Calling(calling), terms, Duration::ZERO)
}

fn respond(source: Source, terms: Terms, first_heartbeat: Duration) -> Response {
    let mut heartbeat = tokio::time::interval_at(Instant::now() + first_heartbeat, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut response = Body::from_stream(Events { source, terms, heartbeat, sent: false }).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would show the whole answer at its end.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

impl Events {
    /// Ends with an error event, behind what was written before it.
    fn fail(&mut self, error: &OpenAiError) -> Bytes {
        let event = chunks::error(error);
        match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Speaking(_, mut chunks) if chunks.len() > 0 => {
                let mut piece = Vec::from(chunks.take());
                piece.extend_from_slice(&event);
                piece.into()
            }
            _ => event,
        }
    }

    /// The next piece, if there is one without waiting. None at the end.
    fn piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match &mut self.source {
                Source::Calling(calling) => match calling.as_mut().poll(context) {
                    Poll::Ready(Ok(stream)) => {
                        let Terms { model, created, include_usage } = &self.terms;
                        let chunks = Chunks::new(stream.call_id, model, *created, *include_usage);
                        self.source = Source::Speaking(Box::new(stream), chunks);
                    }
                    Poll::Ready(Err(error)) => {
                        let error = OpenAiError::of_chat(error, &self.terms.model);
                        return Poll::Ready(Some(self.fail(&error)));
                    }
                    Poll::Pending => return Poll::Pending,
                },
                Source::Speaking(stream, chunks) => match Pin::new(stream.as_mut()).poll_next(context) {
                    Poll::Ready(Some(Ok(event))) => {
                        let last = chunks.event(event);
                        if last || chunks.len() >= PIECE {
                            let piece = chunks.take();
                            if last {
                                self.source = Source::Ended;
                            }
                            return Poll::Ready(Some(piece));
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(self.fail(&error.into()))),
                    Poll::Ready(None) => return Poll::Ready(Some(self.fail(&OpenAiError::lost()))),
                    Poll::Pending if chunks.len() > 0 => return Poll::Ready(Some(chunks.take())),
                    Poll::Pending => return Poll::Pending,
                },
                Source::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(piece) = self.piece(context) {
            self.sent = true;
            return Poll::Ready(piece.map(Ok));
        }
        while self.heartbeat.poll_tick(context).is_ready() {
            if !std::mem::take(&mut self.sent) {
                return Poll::Ready(Some(Ok(Bytes::from_static(b": heartbeat\n\n"))));
            }
        }
        Poll::Pending
    }
}
