//! Connections of clients that have stopped reading.
//!
//! Whoever streams an answer writes as fast as its client reads, and no faster. A client that reads no more without
//! closing would so keep its stream, and the call of a model behind it, for as long as it likes. Here a connection fails
//! whose client has taken nothing for a while of what is there for it; the stream ends with it, and so does the call. A
//! client that is only slow takes something again and again, and one that has nothing coming waits for nothing.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A listener whose connections are [`PatientIo`].
#[derive(Debug)]
pub struct Patient<L> {
    listener: L,
    patience: Duration,
}

impl<L> Patient<L> {
    /// Connections of `listener` on which nothing can be written for so long fail.
    pub fn new(listener: L, patience: Duration) -> Self {
        Self { listener, patience }
    }
}

impl<L: Listener> Listener for Patient<L> {
    type Io = PatientIo<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, address) = self.listener.accept().await;
        (PatientIo { io, patience: self.patience, stalled: None }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that fails if nothing can be written for a while.
#[derive(Debug)]
pub struct PatientIo<T> {
    io: T,
    patience: Duration,
    /// Goes off when patience is over. There only while something waits to be written, so that the others pay nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> PatientIo<T> {
    fn judge(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        stalled
            .as_mut()
            .poll(context)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PatientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PatientIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut io = PatientIo { io: near, patience: PATIENCE, stalled: None };
        let begun = Instant::now();
        // A byte now and then is slow, and enough.
        let slow = async {
            for _ in 0..8 {
                tokio::time::sleep(PATIENCE / 3).await;
                far.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(io.write_all(&[0; 16]), slow);
        written.unwrap();
        assert!(begun.elapsed() > 2 * PATIENCE);
        // Nothing waits to be written, so nothing is the matter.
        tokio::time::sleep(2 * PATIENCE).await;
        let begun = Instant::now();
        let error = io.write_all(&[0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= PATIENCE);
        drop(far);
    }
}
