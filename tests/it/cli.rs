//! The command line as programs see it: under `--json` every command prints exactly one JSON document, errors too.

use std::path::Path;
use std::process::{Command, Output};

use clap::{Arg, CommandFactory as _};
use docaxis::cli::Cli;
use serde_json::Value;

/// All commands that do something, as the words that call them.
fn leaves(command: &clap::Command, path: &[String], found: &mut Vec<(Vec<String>, clap::Command)>) {
    let children: Vec<&clap::Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    if children.is_empty() {
        found.push((path.to_vec(), command.clone()));
    }
    for child in children {
        let path: Vec<String> = path.iter().cloned().chain([child.get_name().to_owned()]).collect();
        leaves(child, &path, found);
    }
}

fn all() -> Vec<(Vec<String>, clap::Command)> {
    let mut found = Vec::new();
    let mut root = Cli::command();
    root.build();
    leaves(&root, &[], &mut found);
    found
}

/// A value that an argument takes without anything existing behind it.
fn value(arg: &Arg, nowhere: &Path) -> String {
    let below = |name: &str| nowhere.join(name).to_str().unwrap().to_owned();
    if let Some(possible) = arg.get_possible_values().first() {
        return possible.get_name().to_owned();
    }
    match arg.get_id().as_str() {
        "id" => "0192f0c1-2b3c-7d4e-8f50-123456789abc".into(),
        "code" | "from" | "to" | "agency" | "agencies" | "recipient" | "alias" | "into" => "H37.DN.001".into(),
        "node" => "h37".into(),
        "origin" => "docaxis.example/vn".into(),
        "broker_address" => "127.0.0.1:7400".into(),
        "serial" => "0a".into(),
        _ => below(arg.get_id().as_str()),
    }
}

/// The words for a call with everything that is required, in which no file and no server is there.
fn call(path: &[String], command: &clap::Command, nowhere: &Path) -> Vec<String> {
    let mut words = path.to_vec();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        let place = matches!(id, "config" | "dir" | "authority");
        if arg.is_positional() && arg.is_required_set() {
            words.push(value(arg, nowhere));
        } else if let Some(long) = arg.get_long()
            && (arg.is_required_set() || place)
        {
            words.extend([format!("--{long}"), value(arg, nowhere)]);
        }
    }
    words
}

fn run(words: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_docaxis")).args(words).arg("--json").output().unwrap()
}

fn one_document(words: &[String], output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words:?} printed no single JSON document ({e}): {text:?}"))
}

/// Whether an error has a code, a message, and an exit code that interfaces promise.
fn assert_error(words: &[String], output: &Output) {
    let document = one_document(words, output);
    let error = &document["error"];
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    assert!(!text("code").is_empty() && !text("message").is_empty(), "{words:?}: {document}");
    assert!(error["hint"].is_string(), "{words:?}: {document}");
    let exit = output.status.code();
    assert!(exit.is_some_and(|code| (1..=7).contains(&code)), "{words:?} ended with {exit:?}");
}

#[test]
fn every_command_answers_a_wrong_flag_with_one_json_error() {
    let leaves = all();
    assert!(leaves.len() > 30, "only {} commands were found", leaves.len());
    for (path, _) in leaves {
        let mut words = path.clone();
        words.push("--no-such-flag".into());
        let output = run(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert_error(&words, &output);
    }
}

#[test]
fn every_command_says_as_json_that_what_it_needs_is_not_there() {
    for (path, command) in all() {
        // The demo and `ca init` need nothing and make everything.
        if matches!(path.iter().map(String::as_str).collect::<Vec<_>>()[..], ["demo"] | ["ca", "init"]) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let words = call(&path, &command, &folder.path().join("nowhere"));
        let output = run(&words);
        assert!(!output.status.success(), "{words:?} succeeded with nothing there");
        // A file that was refused is a result, listed in the one document as such.
        if path == ["doc", "import"] && one_document(&words, &output).is_array() {
            continue;
        }
        assert_error(&words, &output);
    }
}
