//! Hostile clients over real sockets. The bounds are small, so that few connections and little time are enough.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::api::problem::Problem;

/// Longer than any test takes.
const LONG: Duration = Duration::from_mins(1);
const SMALL: Bounds = Bounds {
    connections: 3,
    reserve: 4,
    head: LONG,
    reserve_life: LONG,
    pace: Pace { stall: LONG, least: 1 },
};

struct Served {
    address: SocketAddr,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(bounds: Bounds, all: Router) -> Self {
        Self::start_over(bounds, all, None, false).await
    }

    async fn start_over(
        bounds: Bounds,
        all: Router,
        tls: Option<watch::Receiver<Arc<ServerConfig>>>,
        needs_client_certificate: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let probe = || Router::new().route("/livez", get(|| async { "alive" }));
        let busy = || async { Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy") };
        let uncertified = probe().fallback(busy);
        let routers = Routers { all: all.merge(probe()), reserve: probe().fallback(busy), uncertified };
        let cancel = CancellationToken::new();
        let endpoint = Endpoint { listener, tls, needs_client_certificate };
        let counters = Counters::default();
        let task = tokio::spawn(serve_within(bounds, endpoint, routers, counters, cancel.clone()));
        Self { address, cancel, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What is sent back before the connection ends.
    async fn say(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        ended(stream).await
    }

    async fn get(&self, path: &str) -> String {
        self.say(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

async fn ended(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is cut off may end in an error.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("it does not end");
    String::from_utf8(answer).unwrap()
}

/// Sends a request that is answered after `wait`, and waits until it is being worked on.
fn held() -> (Router, Arc<Semaphore>, Arc<Semaphore>) {
    let (begun, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (beginning, going_on) = (begun.clone(), go_on.clone());
    let wait = move || {
        let (begun, go_on) = (beginning.clone(), going_on.clone());
        async move {
            begun.add_permits(1);
            go_on.acquire().await.unwrap().forget();
            "done"
        }
    };
    (Router::new().route("/wait", get(wait)), begun, go_on)
}

#[tokio::test]
async fn what_the_parser_refuses_has_a_body_that_says_why() {
    let served = Served::start(SMALL, Router::new()).await;
    let long = |length| "x".repeat(length);
    for (request, status, detail) in [
        ("nonsense\r\n\r\n".to_owned(), "400 Bad Request", "not valid HTTP"),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_owned(),
            "400 Bad Request",
            "not valid HTTP",
        ),
        (format!("GET /?{} HTTP/1.1\r\nHost: x\r\n\r\n", long(8200)), "414 URI Too Long", "8 KiB"),
        (
            format!("GET / HTTP/1.1\r\nHost: x\r\nx: {}\r\n\r\n", long(17 << 10)),
            "431 Request Header Fields Too Large",
            "16 KiB",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "x: y\r\n".repeat(120)),
            "431 Request Header Fields Too Large",
            "100 headers",
        ),
    ] {
        let request = request.replace("Host: x\r\n", "Host: x\r\nConnection: close\r\n");
        let answer = served.say(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(head.matches("content-length").count(), 1, "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{problem}");
    }
    served.stop().await;
}

#[tokio::test]
async fn probes_are_answered_while_all_places_are_taken_and_other_requests_get_503() {
    let (router, begun, go_on) = held();
    let served = Served::start(SMALL, router).await;
    let mut waiting = Vec::new();
    for _ in 0..SMALL.connections {
        let mut stream = served.connect().await;
        stream.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        begun.acquire().await.unwrap().forget();
        waiting.push(stream);
    }
    // More than the reserve has places, and all of them silent.
    let mut silent = Vec::new();
    for _ in 0..3 * SMALL.reserve {
        silent.push(served.connect().await);
    }
    for _ in 0..3 * SMALL.reserve {
        let answer = served.get("/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("alive"), "{answer}");
    }
    let answer = served.get("/wait").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection: close"), "{answer}");
    // A connection in the reserve ends after its answer, whatever it wants.
    let answer = served.say("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // Those that have a place were never in danger, and what they leave is free.
    go_on.add_permits(waiting.len());
    for stream in waiting {
        assert!(ended(stream).await.ends_with("done"));
    }
    go_on.add_permits(1);
    assert!(served.get("/wait").await.ends_with("done"));
    served.stop().await;
}

#[tokio::test]
async fn silent_connections_end_and_so_do_idle_ones_and_those_in_the_reserve() {
    let short = Duration::from_millis(200);
    let served = Served::start(Bounds { head: short, reserve_life: short, ..SMALL }, Router::new()).await;
    // Nothing, half a head, and a whole request with nothing after it.
    let requests = ["", "GET /livez HTTP/1.1\r\nHost:", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"];
    let all = requests.iter().chain(&requests).map(|request| served.say(request));
    for (answer, request) in futures_util::future::join_all(all).await.iter().zip(requests.iter().cycle()) {
        assert_eq!(answer.starts_with("HTTP/1.1 200"), request.ends_with("\r\n\r\n"), "{request}: {answer}");
    }
    served.stop().await;
}

/// Signals when the last reader of a body has let go of it.
struct Released(Vec<u8>, Option<oneshot::Sender<()>>);

impl AsRef<[u8]> for Released {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        self.1.take().unwrap().send(()).unwrap();
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_its_answer_is_given_up() {
    let (signal, released) = oneshot::channel();
    // More than all buffers in between hold.
    let body = Bytes::from_owner(Released(vec![7; 64 << 20], Some(signal)));
    let body = std::sync::Mutex::new(Some(body));
    let large = move || {
        let body = body.lock().unwrap().take().unwrap();
        std::future::ready(Body::from(body).into_response())
    };
    let body = Arc::new(large);
    let router = Router::new().route("/large", get(move || body()));
    let pace = Pace { stall: Duration::from_millis(300), least: 32 << 10 };
    let served = Served::start(Bounds { pace, ..SMALL }, router).await;
    let mut stream = served.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::timeout(LONG, released).await.expect("it is cut off").unwrap();
    let mut taken = Vec::new();
    let _ = stream.read_to_end(&mut taken).await;
    assert!(taken.len() < 64 << 20);
    served.stop().await;
}

#[tokio::test]
async fn a_request_has_one_host() {
    let served = Served::start(SMALL, Router::new()).await;
    for (head, status) in [
        ("GET /livez HTTP/1.1\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nhost: y\r\n", 400),
        ("GET /livez HTTP/1.0\r\nHost: x\r\nHost: y\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: x\r\n", 200),
        ("GET /livez HTTP/1.1\r\nHost:\r\n", 200),
        ("GET /livez HTTP/1.0\r\n", 200),
    ] {
        let answer = served.say(&format!("{head}Connection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.{} {status}", &head[18..19])), "{head}: {answer}");
        if status == 400 {
            assert!(answer.contains("application/problem+json") && answer.contains("`Host`"), "{answer}");
        }
    }
    served.stop().await;
}

/// A certificate for `localhost` in files, certified by itself, and one for a client.
mod tls {
    use std::fs;
    use std::sync::Arc;

    use axum::Router;
    use axum::routing::get;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    use super::{LONG, SMALL, Served};
    use crate::counters::Counters;
    use crate::tls::{TlsFiles, TlsStatus, TlsWatch};

    struct Issued {
        certificate: rcgen::Certificate,
        key: rcgen::KeyPair,
    }

    fn issue() -> Issued {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        Issued { certificate: parameters.self_signed(&key).unwrap(), key }
    }

    fn connector(server: &Issued, client: Option<&Issued>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(server.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let key = PrivateKeyDer::try_from(client.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![client.certificate.der().clone()], key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }

    async fn get_over(
        served: &Served,
        connector: &TlsConnector,
        path: &str,
    ) -> Result<String, std::io::Error> {
        let stream = TcpStream::connect(served.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, stream).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        let _ =
            tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.expect("it does not end");
        Ok(answer)
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_gets_probes_only_where_one_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let (server, client, stranger) = (issue(), issue(), issue());
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let files = TlsFiles {
            certificate: file("tls.crt", server.certificate.pem()),
            key: file("tls.key", server.key.serialize_pem()),
            client_ca: Some(file("ca.crt", client.certificate.pem())),
        };
        let loaded = files.load().unwrap();
        let status = tokio::sync::watch::channel(TlsStatus::default()).0;
        let (_watch, tls) = TlsWatch::new(files, &loaded, status, Counters::default());
        let all = Router::new().route("/list", get(|| async { "all" }));
        let running = Served::start_over(SMALL, all, Some(tls), true).await;
        let with = connector(&server, Some(&client));
        assert!(get_over(&running, &with, "/list").await.unwrap().ends_with("all"));
        let without = connector(&server, None);
        assert!(get_over(&running, &without, "/livez").await.unwrap().ends_with("alive"));
        assert!(get_over(&running, &without, "/list").await.unwrap().starts_with("HTTP/1.1 503"));
        // A certificate of another issuer ends the connection.
        let other = get_over(&running, &connector(&server, Some(&stranger)), "/livez").await;
        assert!(other.is_err() || other.unwrap().is_empty());
        // So does plain HTTP, and a server that the client does not trust.
        assert!(!running.get("/livez").await.contains("alive"));
        assert!(get_over(&running, &connector(&stranger, None), "/livez").await.is_err());
        running.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_begin_tls_gives_its_place_back() {
        let directory = tempfile::tempdir().unwrap();
        let server = issue();
        let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
        fs::write(&certificate, server.certificate.pem()).unwrap();
        fs::write(&key, server.key.serialize_pem()).unwrap();
        let files = TlsFiles { certificate, key, client_ca: None };
        let loaded = files.load().unwrap();
        let status = tokio::sync::watch::channel(TlsStatus::default()).0;
        let (_watch, tls) = TlsWatch::new(files, &loaded, status, Counters::default());
        let running = Served::start_over(SMALL, Router::new(), Some(tls), false).await;
        let mut idle = Vec::new();
        for _ in 0..SMALL.connections {
            idle.push(running.connect().await);
        }
        for mut stream in idle {
            let mut answer = Vec::new();
            tokio::time::timeout(2 * LONG, stream.read_to_end(&mut answer))
                .await
                .expect("it does not end")
                .ok();
            assert!(answer.is_empty());
        }
        running.stop().await;
    }
}
