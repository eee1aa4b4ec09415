//! The tests' fake model provider as a process of its own, for benchmarks:
//! `cargo run --release --example fake_model -- --port 9100`. Its models are listed in `tests/it/fake_model.rs`.

#[allow(dead_code, reason = "the tests' recording and inspection are not needed here")]
#[path = "../tests/it/fake_model.rs"]
mod fake_model;

use std::net::Ipv4Addr;

use clap::Parser;

#[derive(Parser)]
struct Args {
    /// Loopback port to listen on.
    #[arg(long, default_value_t = 9100)]
    port: u16,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
    fake_model::serve(listener).await
}
