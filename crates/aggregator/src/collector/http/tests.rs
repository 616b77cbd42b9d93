use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;

/// An agent whose answer arrives in these pieces; it accepts any request.
struct Scripted {
    pieces: std::vec::IntoIter<Vec<u8>>,
    asked: Vec<u8>,
}

impl Scripted {
    fn new(pieces: Vec<Vec<u8>>) -> Self {
        Self { pieces: pieces.into_iter(), asked: Vec::new() }
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = self.pieces.next().unwrap_or_default();
        let rest = piece.split_off(piece.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        if !rest.is_empty() {
            let left: Vec<_> = std::iter::once(rest).chain(self.pieces.by_ref()).collect();
            self.pieces = left.into_iter();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.asked.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Answer = (u16, Vec<(String, String)>, Vec<u8>);

async fn ask(pieces: Vec<Vec<u8>>) -> Result<Answer, HttpError> {
    let head = |status: u16, headers: &[Header<'_>]| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (status, headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect())
    };
    let ((status, headers), mut incoming) =
        exchange(Scripted::new(pieces), b"GET /".to_vec(), head, &AtomicBool::default()).await?;
    assert_eq!(incoming.stream.asked, b"GET /");
    let mut body = Vec::new();
    while let Some(piece) = incoming.next().await? {
        assert!(!piece.is_empty(), "an empty piece would mean the end");
        body.extend_from_slice(piece);
    }
    Ok((status, headers, body))
}

async fn ask_whole(answer: &str) -> Result<Answer, HttpError> {
    ask(vec![answer.as_bytes().to_vec()]).await
}

/// Each form that the end of a body can have, with the body.
const ANSWERS: [(&str, &str); 7] = [
    ("HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 5\r\n\r\nhello", "hello"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
    ("HTTP/1.0 200\r\n\r\nuntil the end", "until the end"),
    ("HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 2\n\nok", "ok"),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", ""),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0A ;x=\"y\"\r\n0123456789\r\n00\r\nTrailer: t\r\n\r\n",
        "abc0123456789",
    ),
    (
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!",
        "!",
    ),
];

#[tokio::test]
async fn an_answer_is_the_same_in_whatever_pieces_it_arrives() {
    for (answer, expected) in ANSWERS {
        let whole = ask_whole(answer).await.unwrap();
        assert_eq!(whole.2, expected.as_bytes(), "{answer}");
        let bytes = answer.as_bytes();
        for cut in 1..bytes.len() {
            let (one, two) = bytes.split_at(cut);
            assert_eq!(ask(vec![one.to_vec(), two.to_vec()]).await.unwrap(), whole, "{answer} cut at {cut}");
        }
        let dripped = bytes.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(ask(dripped).await.unwrap(), whole, "{answer} byte by byte");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_at_any_byte_is_not_whole() {
    for (answer, _) in ANSWERS {
        let ends_by_closing = answer.starts_with("HTTP/1.0");
        for cut in 0..answer.len() {
            let part = ask_whole(&answer[..cut]).await;
            if ends_by_closing && cut >= answer.find("\r\n\r\n").unwrap() + 4 {
                part.unwrap();
                continue;
            }
            // A 304 and a length of zero end with their heads.
            assert!(matches!(part, Err(HttpError::BrokeOff(_))), "{answer} up to {cut}: {part:?}");
        }
    }
}

#[tokio::test]
async fn bytes_behind_an_answer_are_not_its_body() {
    let (_, _, body) = ask_whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more").await.unwrap();
    assert_eq!(body, b"ok");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nand more";
    assert_eq!(ask_whole(chunked).await.unwrap().2, b"ok");
}

#[tokio::test]
async fn a_malformed_answer_is_refused_with_the_reason() {
    let long = "x".repeat(MAX_HEAD);
    let head = "HTTP/1.1 200 OK\r\n";
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    let many = "x: y\r\n".repeat(MAX_HEADERS + 1);
    let cases = [
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "invalid HTTP version"),
        ("\u{7f}ELF".to_owned(), "invalid HTTP version"),
        (format!("{head}x: {long}\r\n\r\n"), "longer than 16384 bytes"),
        (format!("{head}{many}\r\n"), "too many headers"),
        ("HTTP/1.1 100 Continue\r\n\r\n".repeat(1000), "longer than 16384 bytes"),
        (format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), "Content-Length"),
        (format!("{head}Content-Length: +1\r\n\r\n"), "Content-Length"),
        (format!("{head}Content-Length: 18446744073709551616\r\n\r\n"), "Content-Length"),
        (format!("{head}Content-Length: \r\n\r\n"), "Content-Length"),
        (format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n"), "Transfer-Encoding"),
        (format!("{chunked}-1\r\n"), "chunked"),
        (format!("{chunked}\r\n"), "chunked"),
        (format!("{chunked}10000000000000000\r\n"), "chunked"),
        (format!("{chunked}1\r\nab\r\n"), "chunked"),
        (format!("{chunked}1;{long}\r\na\r\n"), "chunked"),
        (format!("{chunked}0\r\n{long}\r\n\r\n"), "chunked"),
        (format!("{chunked}0\r\n{}", "t: x\r\n".repeat(MAX_HEAD)), "chunked"),
    ];
    for (answer, why) in cases {
        let shown = answer.get(..60).unwrap_or(&answer).escape_debug().to_string();
        match ask_whole(&answer).await {
            Err(error @ HttpError::NotHttp(_)) => {
                assert!(error.to_string().contains(why), "{shown}: {error}");
            }
            other => panic!("{shown}: {other:?}"),
        }
    }
}

/// A body may have any number of pieces, because the limit counts for each piece and not for all.
#[tokio::test]
async fn any_number_of_small_chunks_is_read() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = format!("{head}{}0\r\n\r\n", "1\r\na\r\n".repeat(MAX_HEAD));
    assert_eq!(ask_whole(&answer).await.unwrap().2.len(), MAX_HEAD);
}
