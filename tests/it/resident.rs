//! Memory of a process, as the kernel counts it. `self` stands for this process, as it does under `/proc`.

/// KiB that the process has under this name in its status, such as `VmRSS` (resident now) or `VmHWM` (its peak).
pub fn kib(pid: &str, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.split(':').next() == Some(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub fn mib(pid: &str, what: &str) -> f64 {
    kib(pid, what) as f64 / 1024.0
}

/// Sets the peak of the process back to what it has now.
pub fn forget_the_peak(pid: &str) {
    if let Err(error) = std::fs::write(format!("/proc/{pid}/clear_refs"), "5") {
        println!("the peak cannot be reset ({error}): it is that of everything so far");
    }
}
