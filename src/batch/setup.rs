//! What the ranks of a batch settle before work begins: which servers there are and who has how
//! many places at each, who can read the input, and who shares the job's folder.
//!
//! A server is shared by the ranks of its own machine; one that is on no rank's machine by all that
//! reach it. A loopback address means each machine's own server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::servers::{Server, ServerSpec, is_local, probe};
use crate::backend::Dialect;
use crate::sched::collect::{Fault, Staged};
use crate::sched::fabric::{Fabric, Topology};
use crate::sched::tasks::Rank;

/// Places at a server that does not say how many it has.
const SLOTS_DEFAULT: u32 = 16;

/// What a rank is to know.
#[derive(Clone, Debug)]
pub struct SetupConfig<'c> {
    /// The servers that were named.
    pub specs: &'c [ServerSpec],
    /// Tasks at once of each rank; None: its share of the servers' slots.
    pub inflight: Option<u32>,
    /// The job's folder, if results are kept.
    pub folder: Option<&'c Path>,
    /// The input, if it is a file that each rank may find.
    pub input: Option<&'c Path>,
}

/// What was settled for a rank.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The servers, as this rank sees them.
    pub servers: Vec<Server>,
    /// Its places at each.
    pub permits: Vec<u32>,
    /// It reads the input itself.
    pub reads: bool,
    /// Which of the ranks that read it is, and how many these are.
    pub reader: (u32, u32),
    /// It writes into the folder that rank 0 merges.
    pub shares_folder: bool,
    /// It brings what is in its folder to rank 0; of the ranks that share one, the first does.
    pub ships: bool,
    /// At rank 0: the ranks that do so.
    pub apart: Vec<Rank>,
    /// The input's bytes.
    pub input_bytes: Option<u64>,
    /// What all ranks see, for when some die.
    pub views: Views,
}

/// The servers as all ranks see them.
#[derive(Clone, Debug, Default)]
pub struct Views {
    views: Vec<View>,
    topology: Topology,
    inflight: Option<u32>,
}

impl Views {
    /// The places of `rank` at each server, when these ranks are left: every slot is used again.
    pub fn permits(&self, rank: Rank, alive: &[Rank]) -> Vec<u32> {
        let mut views = self.views.clone();
        for (other, view) in (0..).map(Rank).zip(&mut views) {
            if !alive.contains(&other) {
                view.servers.iter_mut().for_each(|seen| *seen = Seen::default());
            }
        }
        let servers = views.first().map_or(0, |view| view.servers.len());
        permits(servers, self.inflight, &self.topology, &views).swap_remove(rank.0 as usize)
    }
}

/// What rank 0 tells first.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    /// What stands in a file of the job's folder.
    nonce: Option<String>,
    input_bytes: Option<u64>,
    error: Option<String>,
}

/// What each rank tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct View {
    shares_folder: bool,
    /// Where its folder is, on its machine.
    place: String,
    reads: bool,
    servers: Vec<Seen>,
}

/// A server as a rank sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Seen {
    up: bool,
    local: bool,
    loopback: bool,
    slots: Option<u32>,
    error: String,
}

/// What rank 0 decides for each.
#[derive(Debug, Serialize, Deserialize)]
struct Allotment {
    permits: Vec<u32>,
    ships: bool,
    reader: (u32, u32),
    views: Vec<View>,
    error: Option<String>,
}

/// Settles it among all ranks.
///
/// # Errors
/// No server is up, the folder or the input is not to be had, a rank died.
pub fn settle<F: Fabric>(
    fabric: &mut Staged<'_, F>,
    config: &SetupConfig<'_>,
) -> Result<Setup, Fault> {
    let size = fabric.topology().size() as usize;
    let offer = (fabric.rank() == Rank(0)).then(|| encode(&offer(config)));
    let offer: Offer = decode(&fabric.scatter(offer.map(|offer| vec![offer; size]))?)?;
    if let Some(error) = offer.error {
        return Err(Fault::Everywhere(error));
    }
    let (view, servers) = look(config, &offer);
    let (reads, shares_folder) = (view.reads, view.shares_folder);
    let views = fabric.gather(encode(&view))?;
    let mut apart = Vec::new();
    let allotments = match views {
        None => None,
        Some(views) => {
            let views = views.iter().map(|view| decode(view)).collect::<Result<Vec<View>, _>>()?;
            let topology = fabric.topology().clone();
            apart = ships(&topology, &views);
            let all = allot(config, &topology, &views);
            Some(all.iter().map(encode).collect())
        }
    };
    let Allotment { permits, ships, reader, views, error } = decode(&fabric.scatter(allotments)?)?;
    if let Some(error) = error {
        return Err(Fault::Everywhere(error));
    }
    if let (Rank(0), Some(folder)) = (fabric.rank(), config.folder) {
        // It has told what it had to tell.
        let _ = fs::remove_file(nonce_path(folder));
    }
    let input_bytes = offer.input_bytes;
    let topology = Topology::clone(fabric.topology());
    let views = Views { views, topology, inflight: config.inflight };
    let shares = shares_folder;
    Ok(Setup {
        servers,
        permits,
        reads,
        reader,
        shares_folder: shares,
        ships,
        apart,
        input_bytes,
        views,
    })
}

fn nonce_path(folder: &Path) -> PathBuf {
    folder.join("shared")
}

fn offer(config: &SetupConfig<'_>) -> Offer {
    let result = || -> Result<Offer, String> {
        let nonce = match config.folder {
            None => None,
            Some(folder) => {
                let (pid, now) = (std::process::id(), std::time::SystemTime::now());
                let nonce = format!("{pid} {}", crate::log::utc(now));
                let path = nonce_path(folder);
                let write = || -> io::Result<()> {
                    fs::create_dir_all(folder)?;
                    fs::write(&path, &nonce)
                };
                write().map_err(|error| format!("writing {path:?}: {error}"))?;
                Some(nonce)
            }
        };
        let input_bytes = match config.input {
            None => None,
            Some(path) => {
                let metadata = fs::metadata(path);
                let metadata = metadata.map_err(|error| format!("reading {path:?}: {error}"))?;
                Some(metadata.len())
            }
        };
        Ok(Offer { nonce, input_bytes, error: None })
    };
    let failed = |error| Offer { nonce: None, input_bytes: None, error: Some(error) };
    result().unwrap_or_else(failed)
}

/// What this rank sees.
fn look(config: &SetupConfig<'_>, offer: &Offer) -> (View, Vec<Server>) {
    let mut servers = Vec::new();
    let seen = config.specs.iter().map(|spec| match probe(spec) {
        Ok(probed) => {
            servers.push(spec.server(&probed));
            let (local, loopback) = (is_local(&probed.address), probed.address.ip().is_loopback());
            Seen { up: true, local, loopback, slots: probed.slots, error: String::new() }
        }
        Err(error) => {
            servers.push(spec.unseen(Dialect::Llama));
            Seen { error, ..Seen::default() }
        }
    });
    let seen = seen.collect();
    let shares_folder = match (config.folder, &offer.nonce) {
        (Some(folder), Some(nonce)) => {
            fs::read_to_string(nonce_path(folder)).is_ok_and(|found| found == *nonce)
        }
        _ => true,
    };
    let reads = match (config.input, offer.input_bytes) {
        (Some(path), Some(bytes)) => {
            shares_folder
                && fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes)
                && fs::File::open(path).is_ok()
        }
        // A pipe is copied into the folder.
        _ => shares_folder,
    };
    let place = config.folder.and_then(|folder| std::path::absolute(folder).ok());
    let place = place.map(|place| place.to_string_lossy().into_owned()).unwrap_or_default();
    (View { shares_folder, place, reads, servers: seen }, servers)
}

/// The first rank of each folder that rank 0 does not share.
fn ships(topology: &Topology, views: &[View]) -> Vec<Rank> {
    let mut places = Vec::new();
    let mut first = Vec::new();
    for (rank, view) in (0..).map(Rank).zip(views).filter(|(_, view)| !view.shares_folder) {
        let place = (topology.node(rank), &view.place);
        if !places.contains(&place) {
            places.push(place);
            first.push(rank);
        }
    }
    first
}

/// What each rank is told.
fn allot(config: &SetupConfig<'_>, topology: &Topology, views: &[View]) -> Vec<Allotment> {
    let up = |server: usize| views.iter().any(|view| view.servers[server].up);
    for (server, spec) in config.specs.iter().enumerate().filter(|(server, _)| !up(*server)) {
        let error = &views[0].servers[server].error;
        log::warn!("{error}; {} is used once it answers", spec.name);
    }
    let readers: Vec<usize> = (0..views.len()).filter(|&rank| views[rank].reads).collect();
    let none_up = !(0..config.specs.len()).any(up);
    let reasons = views[0].servers.iter().map(|seen| seen.error.as_str()).collect::<Vec<_>>();
    let error = none_up.then(|| format!("no server is up: {}", reasons.join("; ")));
    let permits = permits(config.specs.len(), config.inflight, topology, views);
    let apart = ships(topology, views);
    let allotments = permits.into_iter().enumerate().map(|(rank, permits)| {
        let place = readers.iter().position(|&reader| reader == rank).unwrap_or(0);
        let reader = (place as u32, readers.len() as u32);
        let ships = apart.contains(&Rank(rank as u32));
        Allotment { permits, ships, reader, views: views.to_vec(), error: error.clone() }
    });
    allotments.collect()
}

/// Who gets how many places where: by rank, then by server.
fn permits(
    servers: usize,
    inflight: Option<u32>,
    topology: &Topology,
    views: &[View],
) -> Vec<Vec<u32>> {
    let mut permits = vec![vec![0u32; servers]; views.len()];
    let shared = (0..servers).flat_map(|server| {
        groups(server, topology, views).into_iter().map(move |group| (server, group))
    });
    for (server, group) in shared {
        let slots = slots_of(server, &group, views);
        for (place, &rank) in group.iter().enumerate() {
            // Who gets one more turns with the server, so that nobody gets one more of each.
            let turn = (place + server) % group.len();
            let (each, rest) = (slots / group.len() as u32, slots % group.len() as u32);
            permits[rank][server] = each + u32::from((turn as u32) < rest);
        }
    }
    if let Some(inflight) = inflight {
        permits.iter_mut().for_each(|of| spread(inflight, of));
    }
    permits
}

/// The ranks that share a server; several groups where its address means several servers.
fn groups(server: usize, topology: &Topology, views: &[View]) -> Vec<Vec<usize>> {
    let ranks = || 0..views.len();
    let seen = |rank: usize| &views[rank].servers[server];
    let local: Vec<usize> = ranks().filter(|&rank| seen(rank).up && seen(rank).local).collect();
    if local.iter().any(|&rank| seen(rank).loopback) {
        let nodes = 0..topology.nodes() as u32;
        let of = |node| {
            let here = |&rank: &usize| topology.node(Rank(rank as u32)) == node;
            local.iter().copied().filter(here).collect::<Vec<_>>()
        };
        return nodes.map(of).filter(|group| !group.is_empty()).collect();
    }
    if !local.is_empty() {
        return vec![local];
    }
    let reaching: Vec<usize> = ranks().filter(|&rank| seen(rank).up).collect();
    // One that is down is shared by all, for when it comes.
    vec![if reaching.is_empty() { ranks().collect() } else { reaching }]
}

fn slots_of(server: usize, group: &[usize], views: &[View]) -> u32 {
    let told = group.iter().find_map(|&rank| views[rank].servers[server].slots);
    let others = || views.iter().flat_map(|view| &view.servers).filter_map(|seen| seen.slots).max();
    let is_up = group.iter().any(|&rank| views[rank].servers[server].up);
    match told {
        Some(slots) => slots.max(1),
        // One that is not there yet is taken to be like the others.
        None if !is_up => others().unwrap_or(SLOTS_DEFAULT),
        None => SLOTS_DEFAULT,
    }
}

/// Spreads `inflight` evenly over the servers at which there are places.
fn spread(inflight: u32, permits: &mut [u32]) {
    let count = permits.iter().filter(|&&places| places > 0).count() as u32;
    if count == 0 {
        // More ranks than slots; the user wants it all the same.
        if let Some(first) = permits.first_mut() {
            *first = inflight;
        }
        return;
    }
    let with_places = permits.iter_mut().filter(|places| **places > 0);
    for (nth, places) in (0..).zip(with_places) {
        *places = inflight / count + u32::from(nth < inflight % count);
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn decode<T: for<'d> Deserialize<'d>>(bytes: &[u8]) -> Result<T, String> {
    let wrong =
        |error| format!("ranks do not understand each other: {error}; is one another version?");
    serde_json::from_slice(bytes).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(local: bool, loopback: bool, slots: u32) -> Seen {
        Seen { up: true, local, loopback, slots: Some(slots), error: String::new() }
    }

    fn allotted(nodes: &[u32], servers: &[Vec<Seen>], inflight: Option<u32>) -> Vec<Vec<u32>> {
        let list = (0..servers[0].len()).map(|i| format!("http://h{i}:1"));
        let list = list.collect::<Vec<_>>().join(",");
        let specs = super::super::servers::parse_servers(&list, None).unwrap();
        let config = SetupConfig { specs: &specs, inflight, folder: None, input: None };
        let view = |servers: &Vec<Seen>| View {
            shares_folder: true,
            place: String::new(),
            reads: true,
            servers: servers.clone(),
        };
        let views: Vec<View> = servers.iter().map(view).collect();
        let all = allot(&config, &Topology::new(nodes), &views);
        all.into_iter().map(|allotment| allotment.permits).collect()
    }

    fn apart(place: &str) -> View {
        let (place, servers) = (place.to_owned(), Vec::new());
        View { shares_folder: false, place, reads: false, servers }
    }

    #[test]
    fn one_rank_of_each_folder_ships() {
        let shared = View { shares_folder: true, ..apart("/a") };
        let views = [shared.clone(), apart("/a"), apart("/a"), apart("/b"), apart("/a"), shared];
        let ranks = ships(&Topology::new(&[0, 1, 1, 1, 2, 0]), &views);
        assert_eq!(ranks, [Rank(1), Rank(3), Rank(4)]);
    }

    #[test]
    fn slots_are_shared_out() {
        // One server, 6 slots, 4 ranks.
        let all = vec![vec![seen(false, false, 6)]; 4];
        assert_eq!(allotted(&[0, 0, 0, 0], &all, None), [[2], [2], [1], [1]]);
        assert_eq!(allotted(&[0, 0, 0, 0], &all, Some(5)), [[5], [5], [5], [5]]);
        // Each machine's own server.
        let all = vec![vec![seen(true, true, 4)]; 4];
        assert_eq!(allotted(&[0, 0, 1, 1], &all, None), [[2], [2], [2], [2]]);
        // A server on each of two machines.
        let on = |a: bool| vec![seen(a, false, 4), seen(!a, false, 8)];
        let all = [on(true), on(true), on(false), on(false)];
        assert_eq!(allotted(&[0, 0, 1, 1], &all, None), [[2, 0], [2, 0], [0, 4], [0, 4]]);
        // Four servers of one slot: one for each rank.
        let all = vec![vec![seen(true, true, 1); 4]; 4];
        let all = allotted(&[0, 0, 0, 0], &all, None);
        assert!(all.iter().all(|of| of.iter().sum::<u32>() == 1), "{all:?}");
        // When a rank dies the others use its places.
        let views = Views {
            views: [true, true, true]
                .map(|_| View { servers: vec![seen(true, true, 4)], ..apart("") })
                .to_vec(),
            topology: Topology::new(&[0, 0, 0]),
            inflight: None,
        };
        assert_eq!(views.permits(Rank(2), &[Rank(0), Rank(1), Rank(2)]), [1]);
        assert_eq!(views.permits(Rank(2), &[Rank(0), Rank(2)]), [2]);
        // One that is down counts like the others.
        let all = vec![vec![seen(false, false, 4), Seen::default()]; 2];
        assert_eq!(allotted(&[0, 0], &all, None), [[2, 2], [2, 2]]);
    }
}
