//! The same exchange as real processes of the program, for what only a real process can show: kill -9. No child
//! outlives the value; if a claim failed, the end of each log is shown.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use docaxis::control::Control;
use docaxis_broker::BrokerConfig;

use super::{HANG, TestNet};

/// How the broker is called beside the nodes.
pub const BROKER: &str = "broker";
/// And the authority.
pub const AUTHORITY: &str = "authority";
/// Before a child that has not ended is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Lines of each log that are shown after a failure.
const SHOWN: usize = 40;

pub struct Processes {
    pub net: TestNet,
    running: BTreeMap<String, Child>,
}

impl Processes {
    /// Everything runs when this returns.
    pub fn start(nodes: &[(&str, &[&str])]) -> Self {
        let mut processes = Self::prepare(nodes, |_| {});
        for name in processes.names() {
            processes.launch(&name);
        }
        processes
    }

    /// Everything is there and nothing runs.
    pub fn prepare(nodes: &[(&str, &[&str])], configure: impl FnOnce(&mut BrokerConfig)) -> Self {
        let mut net = TestNet::prepare(nodes);
        net.configure(configure, |_| {});
        net.authority.issue_link(&net.folder.path().join(AUTHORITY), super::now()).unwrap();
        let broker = toml::to_string(&net.broker_config).unwrap();
        std::fs::write(net.folder.path().join("broker.toml"), broker).unwrap();
        for (name, node) in &net.nodes {
            std::fs::write(net.folder.path().join(format!("{name}.toml")), agent_toml(&node.config.agent.data))
                .unwrap();
        }
        Self { net, running: BTreeMap::new() }
    }

    /// The broker first, then the nodes.
    pub fn names(&self) -> Vec<String> {
        [BROKER.to_owned()].into_iter().chain(self.net.nodes.keys().cloned()).collect()
    }

    /// Starts a process; it serves when this returns.
    pub fn launch(&mut self, name: &str) {
        assert!(self.spawn(name, None), "{name} ended instead of serving");
    }

    /// Starts a process that will die at a failpoint (`NAME:N`); when this returns, it serves or has died already.
    pub fn launch_armed(&mut self, name: &str, failpoint: &str) {
        self.spawn(name, Some(failpoint));
    }

    /// Whether it serves.
    fn spawn(&mut self, name: &str, failpoint: Option<&str>) -> bool {
        self.begin(name, failpoint);
        self.serves(name)
    }

    /// Starts a process with an armed failpoint and does not wait for it.
    pub fn begin_armed(&mut self, name: &str, failpoint: &str) {
        self.begin(name, Some(failpoint));
    }

    fn begin(&mut self, name: &str, failpoint: Option<&str>) {
        let log = File::options().create(true).append(true).open(self.log(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_docaxis"));
        match name {
            AUTHORITY => command.args(["ca", "serve", "--dir"]).arg(self.folder().join(AUTHORITY)),
            BROKER => command.args(["broker", "run", "--config"]).arg(self.folder().join("broker.toml")),
            node => command.args(["agent", "run", "--config"]).arg(self.folder().join(format!("{node}.toml"))),
        };
        command.envs(failpoint.map(|failpoint| ("DOCAXIS_FAILPOINT", failpoint)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        self.running.insert(name.into(), child);
    }

    /// Waits until a process that has just begun serves; false if it ended instead.
    pub fn serves(&mut self, name: &str) -> bool {
        let child = self.running.get_mut(name).expect("it was started");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        !line.is_empty()
    }

    /// The id of a running process.
    pub fn pid(&self, name: &str) -> u32 {
        self.running[name].id()
    }

    /// Waits until a process has died of SIGKILL that it was not sent from here.
    pub fn wait_killed_itself(&mut self, name: &str) -> Result<(), String> {
        use std::os::unix::process::ExitStatusExt as _;
        let mut child = self.running.remove(name).expect("it was started");
        let deadline = Instant::now() + HANG;
        loop {
            match child.try_wait().unwrap() {
                Some(status) if status.signal() == Some(9) => return Ok(()),
                Some(status) => return Err(format!("{name} ended with {status}")),
                None if Instant::now() > deadline => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    return Err(format!("{name} never came there within {} s", HANG.as_secs()));
                }
                None => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// kill -9.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn control(&self, name: &str) -> Control {
        Control::new(&self.socket(name), "")
    }

    /// The control socket of the broker or a node.
    pub fn socket(&self, name: &str) -> PathBuf {
        match name {
            BROKER => docaxis_broker::control_socket(&self.net.broker_config),
            node => self.net.nodes[node].config.agent.data.join("control.sock"),
        }
    }

    /// The folder that everything lies in.
    pub fn folder(&self) -> &Path {
        self.net.folder.path()
    }

    /// Everything that a process has written into its log, over all its starts.
    pub fn logged(&self, name: &str) -> String {
        std::fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.net.folder.path().join(format!("{name}.log"))
    }
}

/// Short pauses, so that many failures fit into a minute.
fn agent_toml(data: &Path) -> String {
    let identity = data.with_file_name("identity");
    format!(
        "[agent]\ndata = {data:?}\nidentity = {identity:?}\n\
         [link]\nkeep_alive = '300ms'\nretry_min = '20ms'\nretry_max = '300ms'\n\
         proofs_every = '300ms'\n\
         [outbox]\nretry_min = '50ms'\nretry_max = '500ms'\n\
         [partials]\nsync_every_mib = 1\n"
    )
}

impl Drop for Processes {
    fn drop(&mut self) {
        for name in self.running.keys().cloned().collect::<Vec<_>>() {
            self.kill(&name);
        }
        if std::thread::panicking() {
            for name in self.names().into_iter().chain([AUTHORITY.to_owned()]) {
                let log = self.logged(&name);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(SHOWN)..].join("\n"));
            }
        }
    }
}
