//! The machine's processes, as `/proc` lists them: who started whom, who listens on a port.

use std::collections::BTreeSet;
use std::fs;

use crate::net::diag;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Who started it, or took it over when that one ended.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// A zombie: it has ended, and nobody has asked how.
    pub ended: bool,
    /// Processor time, in ticks.
    pub ticks: u64,
    /// That of its own children that have ended.
    pub waited_ticks: u64,
}

/// All processes that can be seen.
pub fn table() -> Vec<Process> {
    pids().filter_map(|pid| parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A line of `/proc/PID/stat` (man 5 proc_pid_stat). The name may hold spaces and brackets.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_, fields) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // state is field 3, ppid 4, pgrp 5, utime 14, stime 15, cutime 16, cstime 17.
    Some(Process {
        pid: pid.parse().ok()?,
        parent: u32::try_from(number(1)?).ok()?,
        group: u32::try_from(number(2)?).ok()?,
        ended: matches!(*fields.first()?, "Z" | "X"),
        ticks: number(11)? + number(12)?,
        waited_ticks: number(13)? + number(14)?,
    })
}

/// These and all that came of them.
pub fn descendants(table: &[Process], roots: &[u32]) -> BTreeSet<u32> {
    let mut found: BTreeSet<u32> = roots.iter().copied().collect();
    loop {
        let before = found.len();
        let children = table.iter().filter(|process| found.contains(&process.parent));
        let children: Vec<u32> = children.map(|process| process.pid).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

/// Processes that listen on these ports of this machine, as far as this user may see them.
pub fn listeners(ports: &[u16]) -> Vec<u32> {
    if ports.is_empty() {
        return Vec::new();
    }
    let inodes = diag::listening(ports).unwrap_or_else(|_| {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].iter();
        let of_table = |path| listening(&fs::read_to_string(path).unwrap_or_default(), ports);
        tables.flat_map(of_table).collect()
    });
    let sockets: BTreeSet<String> =
        inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links.any(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
    };
    pids().filter(holds).collect()
}

/// Ports of servers on this machine that a command names: what they take is no noise.
pub fn local_ports(words: &[String]) -> Vec<u16> {
    let of_word = |word: &String| -> Vec<u16> {
        let hosts = ["127.0.0.1:", "localhost:", "[::1]:"];
        let places = hosts.iter().flat_map(|host| word.split(host).skip(1));
        let digits = places.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        digits.filter_map(|digits| digits?.parse().ok()).collect()
    };
    words.iter().flat_map(of_word).collect()
}

/// Inodes of listening sockets (state 0A) on these ports, from `/proc/net/tcp`.
fn listening(table: &str, ports: &[u16]) -> Vec<u64> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        let fits = *fields.get(3)? == "0A" && ports.contains(&port);
        fields.get(9)?.parse().ok().filter(|_| fits)
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat() {
        let line = "42 (a) (b c) S 7 42 1 0 -1 4 1 2 3 4 100 50 20 10 20 0 1 0 5 6 7";
        let process =
            Process { pid: 42, parent: 7, group: 42, ended: false, ticks: 150, waited_ticks: 30 };
        assert_eq!(parse(line), Some(process));
        assert_eq!((parse(""), parse("42 (a) S 7")), (None, None));
    }

    #[test]
    fn who_came_of_whom() {
        let process = |pid, parent| Process {
            pid,
            parent,
            group: 1,
            ended: false,
            ticks: 0,
            waited_ticks: 0,
        };
        let table = [process(5, 4), process(4, 2), process(2, 1), process(3, 1)];
        assert_eq!(descendants(&table, &[2]), BTreeSet::from([2, 4, 5]));
    }

    #[test]
    fn this_process_is_seen_with_its_socket() {
        assert!(table().iter().any(|process| process.pid == std::process::id()));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listeners(&[port]), [std::process::id()]);
        assert!(listeners(&[]).is_empty());
    }

    #[test]
    fn ports_of_this_machine() {
        let words = ["--server", "http://127.0.0.1:8090,cnse://localhost:5050/x", "10.0.0.1:7"];
        assert_eq!(local_ports(&words.map(str::to_owned)), [8_090, 5_050]);
        assert!(local_ports(&["127.0.0.1:{port}".to_owned()]).is_empty());
    }
}
