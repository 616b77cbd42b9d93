//! A fake API with fixed replies, and runs of the program against it.

use std::fmt::Display;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, sync_channel};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const PROGRAM: &str = env!("CARGO_BIN_EXE_procscan-aggregator");
const JSON: &str = "application/json";
pub(crate) const PROBLEM: &str = "application/problem+json";

/// One received request.
pub(crate) struct Asked {
    /// `METHOD /path?query`
    pub(crate) what: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some(JSON));
        serde_json::from_str(&self.body).unwrap()
    }
}

/// The reply to requests whose method and path begin with `to`.
pub(crate) struct Reply {
    pub(crate) to: &'static str,
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) headers: &'static [(&'static str, &'static str)],
    pub(crate) body: Vec<u8>,
}

pub(crate) fn reply(to: &'static str, status: u16, body: impl Display) -> Reply {
    let kind = if status < 400 { JSON } else { PROBLEM };
    Reply { to, status, kind, headers: &[], body: body.to_string().into_bytes() }
}

pub(crate) fn problem(to: &'static str, status: u16, detail: &str) -> Reply {
    let title = StatusCode::from_u16(status).unwrap().canonical_reason();
    reply(to, status, json!({"type": "about:blank", "title": title, "status": status, "detail": detail}))
}

/// The fake API, on loopback.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Receiver<Asked>,
    _runtime: Runtime,
}

impl Api {
    pub(crate) fn new(answers: Vec<Reply>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, asked) = sync_channel(64);
        let answers = std::sync::Arc::new(answers);
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let (send, answers) = (send.clone(), answers.clone());
            async move {
                let what = format!("{method} {uri}");
                let body = String::from_utf8(body.to_vec()).unwrap();
                send.try_send(Asked { what: what.clone(), headers, body }).unwrap();
                let answer = answers.iter().find(|answer| what.starts_with(answer.to));
                let answer = answer.unwrap_or_else(|| panic!("unexpected request: {what}"));
                if answer.status == 0 {
                    std::future::pending::<()>().await;
                }
                let status = StatusCode::from_u16(answer.status).unwrap();
                let mut answered = (status, answer.body.clone()).into_response();
                for (name, value) in [("content-type", answer.kind)].iter().chain(answer.headers) {
                    answered.headers_mut().insert(*name, value.parse().unwrap());
                }
                answered
            }
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { address, asked, _runtime: runtime }
    }

    /// A fake API with one answer to every request.
    pub(crate) fn only(status: u16, body: impl Display) -> Self {
        Self::new(vec![reply("", status, body)])
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        run(&with_url(args, &self.url()), &[])
    }

    /// The next received request.
    pub(crate) fn asked(&self) -> Asked {
        self.asked.try_recv().expect("a request")
    }

    pub(crate) fn was_left_alone(&self) -> bool {
        self.asked.try_recv().is_err()
    }
}

fn with_url<'a>(args: &[&'a str], url: &'a str) -> Vec<&'a str> {
    args.iter().copied().chain(["--url", url]).collect()
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The output of a command that has succeeded without a note on standard error.
    pub(crate) fn done(self) -> String {
        assert_eq!((self.code, &*self.err), (0, ""), "{}", self.out);
        self.out
    }

    /// The one line of the error of a command that has failed with this exit code.
    pub(crate) fn refused(self, code: i32) -> String {
        assert_eq!((self.code, &*self.out), (code, ""), "{}", self.err);
        let line = self.err.strip_prefix("error: ").and_then(|line| line.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("{}", self.err));
        assert!(!line.contains('\n'), "{line}");
        line.to_owned()
    }
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_remove("PROCSCAN_URL").env_remove("PROCSCAN_TOKEN");
    // Without these variables the program finds no cluster.
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST").env_remove("HOME");
    command
}

pub(crate) fn run(args: &[&str], environment: &[(&str, &str)]) -> Ran {
    let Output { status, stdout, stderr } = command(args).envs(environment.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

pub(crate) fn incident(name: &str, (kind, app): (&str, &str), state: &str) -> Value {
    json!({
        "name": name, "app": {"namespace": "ns-a", "type": kind, "name": app},
        "state": state, "opened": "2026-01-02T10:00:00Z", "since": "2026-01-02T10:30:00.123456Z",
        "reason": "process `xmrig` in Pod web-0",
    })
}

/// The answer to a command that was carried out, and whose decision is `decision`.
pub(crate) fn carried_out(mut incident: Value, decision: &str) -> Value {
    incident["command"] = json!({"decision": decision});
    incident
}

pub(crate) fn incidents(list: &[Value]) -> Value {
    json!({"incidents": list, "total": list.len()})
}
