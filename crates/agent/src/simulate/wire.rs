//! The server of the simulated nodes.
//!
//! Resets, drips and answers without end need the socket itself, which an HTTP library hides. So this is the small part of
//! HTTP/1.1 that an aggregator needs: requests without bodies, answers with a length, persistent connections.

use std::{io, sync::Mutex, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    http::{Head, Play, Request},
    lock,
    node::Node,
    payload::play,
};

/// How long a connection may be idle, as at the real agent.
const IDLE: Duration = Duration::from_secs(10);
/// The longest time for an answer, also for an endless one, and for the requests of a connection.
const LIFETIME: Duration = Duration::from_mins(2);
/// How long to wait for the peer to close after its last answer.
const PARTING: Duration = Duration::from_secs(1);
const HEAD_LIMIT: usize = 8 * 1024;

enum Incoming {
    Request(Request),
    TooLarge,
    Gone,
}

/// Answers requests on one connection until either side closes it.
pub(super) async fn converse(mut stream: TcpStream, node: &Mutex<Node>) -> io::Result<()> {
    // Dripped bytes are sent one by one.
    stream.set_nodelay(true)?;
    let opened = Instant::now();
    let mut received = Vec::new();
    loop {
        let incoming = match timeout(IDLE, receive(&mut stream, &mut received)).await {
            Ok(incoming) => incoming?,
            Err(_idle) => return Ok(()),
        };
        let (answer, keep) = match incoming {
            Incoming::Gone => return Ok(()),
            Incoming::TooLarge => {
                let head = Head { date: None, keep: false };
                (Play::Whole(head.render("431 Request Header Fields Too Large", b"")), false)
            }
            Incoming::Request(request) => {
                let keep = request.keep && opened.elapsed() < LIFETIME;
                (play(&mut lock(node), &request, keep), keep)
            }
        };
        let keep = keep && matches!(answer, Play::Whole(_));
        match timeout(LIFETIME, perform(&mut stream, answer)).await {
            Ok(performed) => performed?,
            Err(_overdue) => return Ok(()),
        }
        if !keep {
            // A connection that is closed with unread bytes is reset, and the client may lose the answer.
            stream.shutdown().await?;
            return timeout(PARTING, departure(&mut stream)).await.unwrap_or(Ok(()));
        }
    }
}

/// Reads up to the end of a request's head; what follows it stays in `received`.
async fn receive(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Incoming> {
    loop {
        let end = received.windows(4).position(|four| four == b"\r\n\r\n");
        if end.unwrap_or(received.len()) > HEAD_LIMIT {
            return Ok(Incoming::TooLarge);
        }
        if let Some(end) = end {
            let head: Vec<u8> = received.drain(..end + 4).collect();
            return Ok(Incoming::Request(Request::parse(&String::from_utf8_lossy(&head))));
        }
        received.reserve(1024);
        if stream.read_buf(received).await? == 0 {
            return Ok(Incoming::Gone);
        }
    }
}

async fn perform(stream: &mut TcpStream, answer: Play) -> io::Result<()> {
    match answer {
        Play::Whole(bytes) => stream.write_all(&bytes).await,
        Play::After(delay, bytes) => {
            tokio::select! {
                () = sleep(delay) => stream.write_all(&bytes).await,
                gone = departure(stream) => gone,
            }
        }
        Play::Drip(pause, bytes) => {
            for byte in bytes {
                stream.write_u8(byte).await?;
                sleep(pause).await;
            }
            Ok(())
        }
        Play::Silence => departure(stream).await,
        // A connection that is dropped with a lingering time of zero is reset.
        Play::Reset => stream.set_zero_linger().and(Err(io::ErrorKind::ConnectionAborted.into())),
        Play::Pieces(pieces) => {
            for piece in pieces {
                stream.write_all(&piece).await?;
            }
            Ok(())
        }
    }
}

/// Waits until the client closes, so that a node that hangs frees the connection then.
async fn departure(stream: &mut TcpStream) -> io::Result<()> {
    let mut ignored = [0; 512];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}
