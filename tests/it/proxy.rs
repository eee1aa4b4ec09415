//! A line to a Postgres that can be cut, or go silent, without touching the Postgres.

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It carries.
    Open,
    /// Connections are closed as soon as they are made.
    Cut,
    /// Connections are accepted, and nothing comes through.
    Silent,
    /// It carries; but the answer to what has this text in it is lost, and its connection.
    Loses(&'static str),
}

pub struct Proxy {
    line: watch::Sender<Line>,
}

impl Proxy {
    /// A line to the server of a Postgres URL. Returns it and the URL that goes over it.
    pub async fn to(url: &str) -> (Self, String) {
        let mut over = url::Url::parse(url).unwrap();
        let target = format!("{}:{}", over.host_str().unwrap(), over.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        over.set_port(Some(address.port())).unwrap();
        let (line, watched) = watch::channel(Line::Open);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, target.clone(), watched.clone()));
            }
        });
        (Self { line }, over.to_string())
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn carry(mut near: TcpStream, target: String, mut line: watch::Receiver<Line>) {
    if *line.borrow() == Line::Silent {
        // Until it speaks again, when it is too late for this connection.
        drop(line.wait_for(|line| *line != Line::Silent).await);
        return;
    }
    if *line.borrow() == Line::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let (mut silent, watched) = (line.clone(), line.clone());
    tokio::select! {
        () = carry_both_ways(&mut near, &mut far, &watched) => return,
        _ = line.wait_for(|line| *line == Line::Cut) => return,
        _ = silent.wait_for(|line| *line == Line::Silent) => {}
    }
    drop(silent.wait_for(|line| *line != Line::Silent).await);
}

async fn carry_both_ways(near: &mut TcpStream, far: &mut TcpStream, line: &watch::Receiver<Line>) {
    let (mut from_near, mut to_near) = near.split();
    let (mut from_far, mut to_far) = far.split();
    let mut bytes = vec![0; 64 * 1024];
    let until_lost = async {
        while let Ok(count @ 1..) = from_near.read(&mut bytes).await {
            if to_far.write_all(&bytes[..count]).await.is_err() {
                return;
            }
            if let Line::Loses(text) = *line.borrow()
                && bytes[..count].windows(text.len()).any(|window| window == text.as_bytes())
            {
                return;
            }
        }
        let _ = to_far.shutdown().await;
        // The other side ends this.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = until_lost => {}
        _ = copy(&mut from_far, &mut to_near) => return,
    }
    // What it asks for is carried out, and nobody hears of that.
    let _ = from_far.read(&mut bytes).await;
}
