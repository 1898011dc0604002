//! The same exchange as real processes of the program, for what only a real process can show: kill -9. No child
//! outlives the value; if a claim failed, the end of each log is shown.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use docaxis::control::Control;

use super::TestNet;

/// How the broker is called beside the nodes.
pub const BROKER: &str = "broker";
/// Lines of each log that are shown after a failure.
const SHOWN: usize = 40;

pub struct Processes {
    pub net: TestNet,
    running: BTreeMap<String, Child>,
}

impl Processes {
    /// Everything runs when this returns.
    pub fn start(nodes: &[(&str, &[&str])]) -> Self {
        let net = TestNet::prepare(nodes);
        let broker = toml::to_string(&net.broker_config).unwrap();
        std::fs::write(net.folder.path().join("broker.toml"), broker).unwrap();
        for (name, node) in &net.nodes {
            std::fs::write(net.folder.path().join(format!("{name}.toml")), agent_toml(&node.config.agent.data))
                .unwrap();
        }
        let mut processes = Self { net, running: BTreeMap::new() };
        for name in processes.names() {
            processes.launch(&name);
        }
        processes
    }

    /// The broker first, then the nodes.
    pub fn names(&self) -> Vec<String> {
        [BROKER.to_owned()].into_iter().chain(self.net.nodes.keys().cloned()).collect()
    }

    /// Starts a process; it serves when this returns.
    pub fn launch(&mut self, name: &str) {
        let role = if name == BROKER { "broker" } else { "agent" };
        let log = File::options().create(true).append(true).open(self.log(name)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_docaxis"))
            .args([role, "run", "--config"])
            .arg(self.net.folder.path().join(format!("{name}.toml")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        self.running.insert(name.into(), child);
        assert!(!line.is_empty(), "{name} ended instead of serving");
    }

    /// kill -9.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn control(&self, name: &str) -> Control {
        match name {
            BROKER => self.net.broker_control(),
            node => Control::new(&self.net.nodes[node].config.agent.data.join("control.sock"), ""),
        }
    }

    /// A new file for a part to be sent.
    pub fn write_part(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.net.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
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
         [outbox]\nretry_min = '50ms'\nretry_max = '500ms'\n"
    )
}

impl Drop for Processes {
    fn drop(&mut self) {
        for name in self.running.keys().cloned().collect::<Vec<_>>() {
            self.kill(&name);
        }
        if std::thread::panicking() {
            for name in self.names() {
                let log = std::fs::read_to_string(self.log(&name)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(SHOWN)..].join("\n"));
            }
        }
    }
}
