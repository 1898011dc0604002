//! Child processes of this same program, each with a log file. None outlives the demo, however it ends: each of them
//! watches its parent.

use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::out::Failure;
use crate::serve;

/// How long a process may take to answer after its start.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a process may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(10);

pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts this program with `args`; its output goes to `logs/NAME.log`.
    pub fn start(name: &str, logs: &Path, args: &[&str]) -> Result<Self, Failure> {
        let log = File::options().create(true).append(true).open(logs.join(format!("{name}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .args(args)
            .env(serve::STOP_WITH_PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| Failure::other(format!("{name} cannot be started: {e}")))?;
        Ok(Self { name: name.into(), child })
    }

    /// Runs this program with `args` to its end.
    pub fn run(name: &str, logs: &Path, args: &[&str]) -> Result<(), Failure> {
        let mut process = Self::start(name, logs, args)?;
        let status = process.child.wait()?;
        if status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(logs.join(format!("{name}.log"))).unwrap_or_default();
        Err(Failure::other(format!("`docaxis {}` ended with {status}: {}", args.join(" "), log.trim())))
    }

    /// Waits until `control` answers, or the process has ended.
    pub fn ready(&mut self, control: &Control) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let answer = control.get::<serde_json::Value>("/v1/status");
            if let Some(status) = self.child.try_wait()? {
                return Err(Failure::other(format!("{} ended with {status}; see its log", self.name)));
            }
            match answer {
                Ok(_) => return Ok(()),
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9: no chance to write anything any more.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and a wait for the end.
    pub fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok()
        {
            let deadline = Instant::now() + END_WITHIN;
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // What has not ended by now is killed by the drop.
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() && self.child.wait().is_err() {
            eprintln!("{} could not be waited for", self.name);
        }
    }
}

/// A UDP port on this machine that nobody uses at the moment.
pub fn free_port() -> Result<u16, Failure> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A path as an argument.
pub fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{} is not UTF-8", path.display())))
}

/// A node of the demo and its agent.
pub struct Node {
    pub id: String,
    pub folder: PathBuf,
    pub agent: Option<Process>,
}

impl Node {
    pub fn control(&self) -> Control {
        let hint = format!("Start the agent: docaxis agent run --config {}", self.config().display());
        Control::new(&self.folder.join("data").join("control.sock"), hint)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self, logs: &Path) -> Result<(), Failure> {
        let mut agent = Process::start(&self.id, logs, &["agent", "run", "--config", &text(&self.config())?])?;
        agent.ready(&self.control())?;
        self.agent = Some(agent);
        Ok(())
    }
}
