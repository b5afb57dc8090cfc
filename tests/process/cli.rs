//! The command line: help, versions, faults, exit codes.

use std::io::Read;
use std::process::Stdio;

use crate::common::{cnse, run, text};

#[test]
fn help_version_and_what_is_not_there() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("serve") && text(&help.stdout).contains("client"));
    for command in ["serve", "client"] {
        let by_flag = run(&[command, "--help"]);
        assert_eq!(by_flag.stdout, run(&["help", command]).stdout);
        assert!(text(&by_flag.stdout).contains("examples:"));
    }
    let version = run(&["--version"]);
    assert!(text(&version.stdout).starts_with("cnse 0.1.0\nfeatures: "));
    for (args, message) in [
        (&["serv"][..], "cnse: error: there is no command serv; did you mean serve?\n"),
        (
            &["serve", "--prot", "1"],
            "cnse: error: there is no flag --prot; did you mean --port? (cnse serve --help)\n",
        ),
        (&["client"], "cnse: error: --prompt TEXT is needed\n"),
    ] {
        let output = run(args);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), message));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child =
        cnse().arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn nobody_there_and_a_port_in_use() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let output = run(&["serve", "--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    let message = format!("cnse: error: listening on 127.0.0.1:{port}: the port is in use; ");
    assert!(text(&output.stderr).starts_with(&message), "{}", text(&output.stderr));
    drop(holder);
    let output = run(&["client", "--port", &port, "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let wanted = format!("cnse: error: connecting to 127.0.0.1:{port}: ");
    assert!(text(&output.stderr).starts_with(&wanted), "{}", text(&output.stderr));
}
