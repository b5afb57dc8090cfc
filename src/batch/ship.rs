//! Parts of the journal on their way to rank 0, from ranks that do not share its file system.
//!
//! Before the work that is what an earlier run left, after it what this one wrote. A rank keeps its
//! parts until rank 0 says that they are safe.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::sched::collect::Staged;
use crate::sched::fabric::Fabric;
use crate::sched::tasks::Rank;

/// Bytes in one message.
const CHUNK_BYTES: usize = 256 << 10;

const GO: &[u8] = b"go";
const SAFE: &[u8] = b"safe";
/// The first byte of a message: the name of a file follows, its bytes, or nothing more comes.
const NAME: u8 = 1;
const BYTES: u8 = 2;
const END: u8 = 3;

/// At a rank whose folder rank 0 does not share: sends all parts in it to rank 0. Nobody may be
/// writing there.
///
/// # Errors
/// A part cannot be read, or rank 0 is gone.
pub fn send<F: Fabric>(fabric: &mut Staged<'_, F>, folder: &Path) -> Result<(), String> {
    fabric.hear(|from| from == Rank(0), 0)?;
    let failed = |path: &Path, error: io::Error| format!("reading {path:?}: {error}");
    let mut sent = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(folder, error)),
    };
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("part-") {
            continue;
        }
        fabric.tell(Rank(0), [&[NAME], name.as_bytes()].concat())?;
        let mut file = File::open(&path).map_err(|error| failed(&path, error))?;
        loop {
            let mut chunk = vec![BYTES];
            let taken = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            if taken.map_err(|error| failed(&path, error))? == 0 {
                break;
            }
            fabric.tell(Rank(0), chunk)?;
        }
        sent.push(path);
    }
    fabric.tell(Rank(0), vec![END])?;
    fabric.hear(|from| from == Rank(0), 0)?;
    for path in sent {
        // It is rank 0's now; what stays behind is sent once more, and does no harm.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// At rank 0: takes the parts of those ranks.
///
/// # Errors
/// They cannot be written, or a rank is gone.
pub fn receive<F: Fabric>(
    fabric: &mut Staged<'_, F>,
    folder: &Path,
    from: &[Rank],
) -> Result<(), String> {
    for &rank in from {
        fabric.tell(rank, GO.to_vec())?;
        let mut file: Option<File> = None;
        loop {
            let (_, message) = fabric.hear(|sender| sender == rank, rank.0)?;
            let failed = |error: io::Error| {
                format!("writing a part of rank {rank} into {folder:?}: {error}")
            };
            match message.split_first() {
                Some((&NAME, name)) => {
                    close(file.take()).map_err(failed)?;
                    let name = String::from_utf8_lossy(name).replace('/', "_");
                    // Its own name may stand here too.
                    let name = name.replacen("part-", &format!("part-of{rank}-"), 1);
                    file = Some(File::create(folder.join(name)).map_err(failed)?);
                }
                Some((&BYTES, bytes)) => {
                    if let Some(file) = &mut file {
                        file.write_all(bytes).map_err(failed)?;
                    }
                }
                _ => {
                    close(file.take()).map_err(failed)?;
                    break;
                }
            }
        }
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| format!("writing {folder:?}: {error}"))?;
        fabric.tell(rank, SAFE.to_vec())?;
    }
    Ok(())
}

fn close(file: Option<File>) -> io::Result<()> {
    file.map_or(Ok(()), |file| file.sync_all())
}

#[cfg(test)]
mod tests {
    use super::super::test_folder;
    use super::*;
    use crate::sched::fabric::Topology;
    use crate::sched::local::local;

    #[test]
    fn parts_arrive_whole_and_are_gone_where_they_were() {
        let (here, there) = (test_folder("ship-here"), test_folder("ship-there"));
        let long: Vec<u8> = (0..3 * CHUNK_BYTES + 7).map(|i| i as u8).collect();
        fs::write(there.join("part-a.jsonl"), &long).unwrap();
        fs::write(there.join("part-b.jsonl"), b"x\n").unwrap();
        fs::write(there.join("other"), b"").unwrap();
        let mut ends = local(Topology::new(&[0, 1])).unwrap();
        let mut far = ends.pop().unwrap();
        let from = there.clone();
        let thread = std::thread::spawn(move || send(&mut Staged::new(&mut far), &from));
        receive(&mut Staged::new(&mut ends[0]), &here, &[Rank(1)]).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(fs::read(here.join("part-of1-a.jsonl")).unwrap(), long);
        assert_eq!(fs::read(here.join("part-of1-b.jsonl")).unwrap(), b"x\n");
        let left = fs::read_dir(&there).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["other"]);
    }
}
