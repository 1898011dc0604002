//! `docaxis demo`: the whole exchange in miniature on this machine, as real child processes of this same program.

mod audit;
mod cast;
mod letters;
mod process;
mod scenarios;
mod story;

use std::path::PathBuf;

use clap::Args;
use docaxis_protocol::ReasonCode;
use serde_json::json;

use crate::out::{Failure, Out};
use crate::serve;
use scenarios::Scenario;
use story::Story;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave everything running until Ctrl-C, and say where it is.
    #[arg(long)]
    keep: bool,
    /// Keep everything in this folder: authority.pem, bundles/, received/, and each part's configuration and data.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Play one of these instead, and check it.
    #[arg(long, conflicts_with = "files")]
    scenario: Option<Scenario>,
    /// edXML files to send instead of the built-in letter.
    files: Vec<PathBuf>,
}

pub fn run(args: &DemoArgs, out: Out) -> Result<(), Failure> {
    if let Some(absent) = args.files.iter().find(|file| !file.is_file()) {
        return Err(Failure::new(ReasonCode::NotFound, format!("there is no file {}", absent.display()))
            .hint("Check the path."));
    }
    // Held to the end: without --dir everything goes with it.
    let temporary = tempfile::tempdir()?;
    let dir = match &args.dir {
        Some(dir) => empty_folder(dir)?,
        None => temporary.path().to_owned(),
    };
    let mut story = Story::begin(dir, &args.files, args.scenario, out)?;
    let told = match args.scenario {
        None => story.tell(),
        Some(scenario) => story.play(scenario),
    };
    if let Err(failure) = &told {
        story.check("the story was told to its end", Err(failure.message.clone()));
    }
    let report = story.report();
    if out.json {
        out.data(&report, "")?;
    } else {
        story.summary(args.keep || args.dir.is_some());
    }
    if args.keep {
        out.talk(story.whereabouts());
        serve::wait_for_stop(|| None)?;
    }
    story.end();
    match report["ok"] == json!(true) {
        true => Ok(()),
        false if out.json => Err(Failure::told(1)),
        false => {
            let hint = match &args.dir {
                Some(dir) => format!("The logs are in {}.", dir.join("logs").display()),
                None => "Run it again with --dir DIR to keep the logs.".into(),
            };
            Err(Failure::other("not every check of the demo holds").hint(hint))
        }
    }
}

/// The folder, made if it is not there; a folder with something in it is not touched.
fn empty_folder(dir: &PathBuf) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(dir)?;
    if std::fs::read_dir(dir)?.next().is_some() {
        return Err(Failure::usage(format!("{} is not empty", dir.display())).hint("Give --dir a folder of its own."));
    }
    Ok(dir.canonicalize()?)
}
