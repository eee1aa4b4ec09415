//! A line to a Postgres that can be cut, or go silent, without touching the Postgres.

use tokio::io::copy_bidirectional;
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
    let mut silent = line.clone();
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        _ = line.wait_for(|line| *line == Line::Cut) => return,
        _ = silent.wait_for(|line| *line == Line::Silent) => {}
    }
    drop(silent.wait_for(|line| *line != Line::Silent).await);
}
