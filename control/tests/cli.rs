//! What the command line says without a daemon.

use std::process::Command;

/// Exit code and standard error; standard output is empty.
fn podway(words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podway"));
    let output = command.args(words).output().unwrap();
    assert_eq!(output.stdout, b"", "{words:?}");
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn with_json_every_failure_is_one_document() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let wrong = file("wrong.toml", "vni = 1\nuplink = \n");
    let missing = directory.path().join("missing.toml");
    let missing = missing.to_str().unwrap();
    for (words, exit, code, begin) in [
        (
            &["--json", "--socket", "/nonexistent", "status"][..],
            4,
            "unavailable",
            "cannot reach podway-control at /nonexistent: ",
        ),
        (
            &["config", "check", &wrong, "--json"],
            1,
            "invalid",
            "the configuration ",
        ),
        (
            &["--json", "config", "check", missing],
            2,
            "bad-request",
            "cannot read ",
        ),
        (
            &["node", "del", "--json"],
            2,
            "bad-request",
            "the following required ",
        ),
        (
            &["route", "add", "10.9.0.0/33", "via", "b", "--json"],
            2,
            "bad-request",
            "invalid value '10.9.0.0/33' ",
        ),
        (
            &["explain", "no_rout", "--json"],
            3,
            "not-found",
            "there is no reason no_rout; did you mean no_route?",
        ),
    ] {
        let (status, said) = podway(words);
        assert_eq!(status, Some(exit), "{words:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let document: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(document["response"], "error", "{said}");
        assert_eq!(document["code"], code, "{said}");
        let message = document["message"].as_str().unwrap();
        assert!(message.starts_with(begin), "{message}");
    }
    // Without it, for people.
    let (status, said) = podway(&["--socket", "/nonexistent", "status"]);
    assert_eq!(status, Some(4));
    assert!(
        said.starts_with("podway: cannot reach podway-control at /nonexistent: "),
        "{said}"
    );
    let (status, said) = podway(&["node", "del"]);
    assert_eq!(status, Some(2));
    assert!(
        said.starts_with("error: ") && said.contains("Usage: "),
        "{said}"
    );
}
