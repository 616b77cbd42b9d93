//! Files: the configuration itself, and those that it names.

use std::path::Path;

use super::{Auth, Config, parse, refused, refused_with_files, with_files};

#[test]
fn the_cluster_says_who_asks_where_there_is_one_else_the_token_file() {
    const ALONE: &str = "discovery: {mode: static, targets: [a]}\noutput: {mode: directory}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "alice aaaaaaaaaaaaaaaa\n").unwrap();
    let token_file = format!("token_file: {}", file.path().display());
    let auth = |text: String| {
        let config = parse(&text).unwrap();
        (config.auth(), config.needs_cluster())
    };
    assert_eq!(auth(String::new()), (Auth::Kubernetes, true));
    assert_eq!(auth(ALONE.to_owned()), (Auth::None, false));
    assert_eq!(auth(format!("{ALONE}api: {{{token_file}}}\n")), (Auth::Tokens, false));
    assert_eq!(auth(format!("{ALONE}api: {{auth: none}}\n")), (Auth::None, false));
    assert_eq!(auth(format!("{ALONE}api: {{auth: kubernetes}}\n")), (Auth::Kubernetes, true));
    assert_eq!(auth(format!("api: {{auth: tokens, {token_file}}}\n")), (Auth::Tokens, true));
    assert_eq!(auth("api: {auth: none}\n".to_owned()), (Auth::None, true));

    refused("api: {auth: tokens}\n", "api.token_file: missing value: ", "a file's path");
    refused("api: {token_file: /x}\n", "api.token_file: invalid value /x", "`api.auth` is `tokens`");
    refused(
        "api: {auth: none, token_file: /x}\n",
        "api.token_file: invalid value /x",
        "`api.auth` is `tokens`",
    );
    refused_with_files(
        "api: {auth: tokens, token_file: /no/such}\n",
        "api.token_file: /no/such: can't be read",
        "",
    );
    refused("api: {auth: off}\n", "api.auth: invalid value `off`", "`kubernetes`, `tokens`, `none`");
    for bad in ["1MiB", "8191KiB", "5GiB"] {
        let place = format!("api.max_in_flight: invalid value {bad}: ");
        refused(&format!("api: {{max_in_flight: {bad}}}\n"), &place, "8MiB to 4GiB");
    }
    refused("api: {max_in_flight: 64}\n", "api.max_in_flight: invalid value 64", "4MiB");
    assert_eq!(parse("api: {max_in_flight: 8MiB}\n").unwrap().api.max_in_flight, 8 << 20);
    std::fs::write(&file, "alice secret\n").unwrap();
    let error = with_files(&format!("api: {{auth: tokens, {token_file}}}\n")).unwrap_err().to_string();
    assert!(
        error.contains(": line 1: invalid value: expected a token") && !error.contains("secret"),
        "{error}"
    );
}

#[test]
fn what_is_no_yaml_is_one_line_with_its_place() {
    for text in [
        "aggregator: [\n",
        "a: b: c\n",
        "aggregator:\n\tport: 1\n",
        "port: 1\nport: 2\n",
        "- a\n",
        "text\n",
        "aggregator: 7\n",
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.starts_with("config.yaml: "), "{error}");
    }
    let missing = Config::load(Path::new("/no/such/config.yaml"), []).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/config.yaml: can't be read: "), "{missing}");
}

#[test]
fn only_regular_files_of_a_bounded_size_are_read_and_a_pipe_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let [pipe, large, link] = ["pipe", "large", "link"].map(|name| directory.path().join(name));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    std::fs::File::create(&large).unwrap().set_len((16 << 20) + 1).unwrap();
    for (path, problem) in [
        (pipe.as_path(), "it is a pipe, a socket or a device, not a regular file"),
        (Path::new("/dev/zero"), "it is a pipe, a socket or a device, not a regular file"),
        (directory.path(), "it is a directory, not a regular file"),
        (large.as_path(), "it is larger than 16 MiB"),
    ] {
        let path = path.display();
        let error = Config::load(Path::new(&path.to_string()), []).unwrap_err().to_string();
        assert_eq!(error, format!("{path}: can't be read: {problem}"));
        refused_with_files(
            &format!("discovery: {{mode: file, file: {path}}}\n"),
            &format!("discovery.file: invalid value {path}: "),
            problem,
        );
        refused_with_files(
            &format!("kubernetes: {{kubeconfig: {path}}}\n"),
            &format!("kubernetes.kubeconfig: invalid value {path}: "),
            problem,
        );
    }
    // The files of a ConfigMap are links.
    std::fs::write(&large, "aggregator: {port: 8090}\n").unwrap();
    std::os::unix::fs::symlink(&large, &link).unwrap();
    Config::load(&link, []).unwrap();
}

#[test]
fn the_files_that_are_named_are_read_after_parsing_only() {
    for text in [
        "discovery: {mode: file, file: /no/such}\n",
        "kubernetes: {kubeconfig: /no/such}\n",
        "api: {auth: tokens, token_file: /no/such}\n",
    ] {
        assert!(parse(text).is_ok(), "{text}");
        assert!(with_files(text).is_err(), "{text}");
    }
}
