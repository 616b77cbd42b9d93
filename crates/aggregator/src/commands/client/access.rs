//! The URL and the token: from the arguments, else from the environment. A token is never an argument, because every user of
//! the machine sees arguments, and it is never shown.

use std::io;
use std::path::Path;

use hyper::Uri;
use hyper::header::HeaderValue;
use tokio::io::AsyncReadExt;

use super::ClientError;
use crate::args::operators::Service;
use crate::commands::printed::escaped;
use crate::config::token_file::is_token;

/// The URL if none is given.
const URL: &str = "http://127.0.0.1:8090";
/// The variable with the URL.
const URL_VARIABLE: &str = "PROCSCAN_URL";
/// The variable with the token.
pub(super) const TOKEN_VARIABLE: &str = "PROCSCAN_TOKEN";
/// The largest file of a token.
const MAX_TOKEN: u64 = 64 << 10;

/// The place of an API.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Host and port.
    pub(super) authority: String,
    /// The path that the API is below, behind a proxy; else nothing.
    pub(super) prefix: String,
    /// Whether it is reached over TLS.
    pub(super) is_https: bool,
}

/// The place of the API.
pub(super) fn place(service: &Service) -> Result<Place, ClientError> {
    let (place, url) = match &service.url {
        Some(url) => ("--url", url.clone()),
        None => (URL_VARIABLE, variable(URL_VARIABLE)?.unwrap_or_else(|| URL.to_owned())),
    };
    parse(&url).map_err(|problem| ClientError::Usage { place: place.to_owned(), problem })
}

/// The header with the token; `None` if no token is given.
pub(super) async fn token(service: &Service) -> Result<Option<HeaderValue>, ClientError> {
    match &service.token_file {
        Some(path) => of_file(path).await.map(Some),
        None => variable(TOKEN_VARIABLE)?.map(|text| header(&text, TOKEN_VARIABLE)).transpose(),
    }
}

/// Whether a cluster may be reached from here: kubectl has a configuration, or this is a Pod.
pub(in crate::commands) fn has_cluster() -> bool {
    let value = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    value("KUBECONFIG").or_else(|| value("KUBERNETES_SERVICE_HOST")).is_some()
        || value("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists())
}

fn variable(name: &str) -> Result<Option<String>, ClientError> {
    let Some(value) = std::env::var_os(name) else { return Ok(None) };
    // Never shown: it may be the token.
    let not_text = |_| ClientError::Usage { place: name.to_owned(), problem: "it must be a text".to_owned() };
    let value = value.into_string().map_err(not_text)?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

fn parse(url: &str) -> Result<Place, String> {
    const EXPECTED: &str = "expected http://HOST:PORT or https://HOST:PORT";
    let shown = escaped(url);
    let refused = || format!("invalid value {shown}: {EXPECTED}");
    let parsed: Uri = url.parse().map_err(|_| refused())?;
    let is_https = match parsed.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(refused()),
    };
    let authority = parsed.authority().ok_or_else(refused)?;
    if authority.as_str().contains('@') {
        // Not shown: there may be a password in it.
        return Err(format!("invalid value with a user or a password, which is not shown: {EXPECTED}"));
    }
    if parsed.query().is_some() || authority.host().is_empty() {
        return Err(refused());
    }
    let has_port = authority.as_str().len() > authority.host().len();
    let port = match authority.port_u16() {
        Some(port) => port,
        None if has_port => return Err(refused()),
        None if is_https => 443,
        None => 80,
    };
    let prefix = parsed.path().trim_end_matches('/').to_owned();
    Ok(Place { authority: format!("{}:{port}", authority.host()), prefix, is_https })
}

async fn of_file(path: &Path) -> Result<HeaderValue, ClientError> {
    let place = format!("--token-file {}", path.display());
    let mut text = String::new();
    // A pipe is allowed: the shell gives one for `<(kubectl create token NAME)`.
    let read = async {
        let file = tokio::fs::File::open(path).await?;
        let read = file.take(MAX_TOKEN + 1).read_to_string(&mut text).await?;
        if u64::try_from(read).is_ok_and(|read| read > MAX_TOKEN) {
            let problem = format!("it is larger than {} KiB", MAX_TOKEN >> 10);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
        Ok(())
    };
    if let Err(error) = read.await {
        return Err(ClientError::Usage { place, problem: format!("it can't be read: {error}") });
    }
    header(&text, &place)
}

/// The header with a token. No error shows it.
fn header(text: &str, place: &str) -> Result<HeaderValue, ClientError> {
    let text = text.trim();
    let header = HeaderValue::from_str(&format!("Bearer {text}")).ok().filter(|_| is_token(text));
    let mut header = header.ok_or_else(|| ClientError::Usage {
        place: place.to_owned(),
        problem: "there must be a bearer token and nothing else: letters, digits and - . _ ~ + / ="
            .to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port_and_maybe_a_path() {
        let parts = |authority: &str, path: &str, is_https| {
            Ok(Place { authority: authority.to_owned(), prefix: path.to_owned(), is_https })
        };
        assert_eq!(parse("http://127.0.0.1:8090"), parts("127.0.0.1:8090", "", false));
        assert_eq!(parse("HTTP://aggregator.kube-system/"), parts("aggregator.kube-system:80", "", false));
        assert_eq!(parse("http://[::1]:8090/a/proxy/"), parts("[::1]:8090", "/a/proxy", false));
        assert_eq!(parse("HttpS://a"), parts("a:443", "", true));
        assert_eq!(parse("https://[::1]:8090"), parts("[::1]:8090", "", true));
        for bad in
            ["", "127.0.0.1:8090", "localhost", "ftp://a:1", "http://", "http://a:99999", "http://a?b=c"]
        {
            let error = parse(bad).expect_err(bad);
            let expected = ": expected http://HOST:PORT or https://HOST:PORT";
            assert!(error.starts_with("invalid value ") && error.ends_with(expected), "{error}");
        }
        assert!(!parse("http://me:secret@a:1").unwrap_err().contains("secret"));
    }
}
