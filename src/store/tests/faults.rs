//! Every call of every command fails once, and is once the last that its process makes.
//!
//! Afterwards, as a new process finds things: whatever is visible is whole, what was acknowledged
//! is there, and the same command goes through.

use std::path::Path;
use std::time::Duration;

use nix::libc;

use super::transfers::{PART, World, model_bytes};
use crate::store::digest::Digest;
use crate::store::error::Error;
use crate::store::files::memory::{After, Fault, Memory};
use crate::store::gc::collect;
use crate::store::output::{Delivery, deliver};
use crate::store::remote::Remote;
use crate::store::sha::Hasher;
use crate::store::sha::tests::each_way_of_hashing;

/// Runs a command with a fault at its first call, its second, and so on until none is met.
fn at_every_call(
    before: &Memory,
    what: &str,
    command: impl Fn(&World<'_>) -> Result<(), Error>,
    check: impl Fn(&World<'_>, &str),
) {
    let faults = [Fault::Stop, Fault::Fail(libc::EIO), Fault::Fail(libc::ENOSPC)];
    for fault in faults {
        let mut call = 0;
        loop {
            let memory = before.with_fault(call, fault);
            let result = command(&World::new(&memory));
            let has_met = memory.has_met_fault();
            let afters = match fault {
                Fault::Stop => &[After::Kill, After::PowerLoss, After::NamesFirst][..],
                Fault::Fail(_) => &[After::Kill],
            };
            for &after in afters {
                let at = format!("{what}, {fault:?} at call {call}, then {after:?}: {result:?}");
                let left = memory.after(after);
                let world = World::new(&left);
                all_is_whole(&world, &at);
                // What was removed may come back with the power; what was made may not go.
                let is_lasting =
                    after == After::Kill || !["gc", "pin and prune", "rm"].contains(&what);
                if result.is_ok() && is_lasting {
                    check(&world, &at);
                }
                let again = command(&world);
                assert!(again.is_ok(), "{at}; again: {again:?}");
                all_is_whole(&world, &at);
                check(&world, &at);
            }
            if !has_met {
                assert!(result.is_ok(), "{what} without a fault: {result:?}");
                assert!(call > 0, "{what} makes no call");
                break;
            }
            call += 1;
        }
    }
}

/// Whatever can be seen is what its name says.
fn all_is_whole(world: &World<'_>, at: &str) {
    let remote = world.remote();
    for entry in remote.blobs().unwrap() {
        if let Some(stat) = remote.stat(&entry.digest).unwrap()
            && stat.record.is_some()
        {
            let mut hasher = Hasher::new();
            let mut take = |piece: &[u8]| {
                hasher.update(piece);
                Ok(())
            };
            remote.read(&entry.digest, &stat, 0, stat.size, &mut take).unwrap();
            assert_eq!(hasher.finish(), entry.digest, "{at}: a blob of the store");
        }
    }
    for (tag, id) in remote.tags().unwrap() {
        let bytes = remote.manifest(&id).unwrap().unwrap_or_else(|| panic!("{at}: {tag} {id}"));
        assert_eq!(Digest::of(&bytes), id, "{at}: the manifest of {tag}");
        let manifest = crate::store::model::read_manifest(&id, &bytes, "").unwrap();
        for file in &manifest.files {
            let stat = remote.stat(&file.sha256).unwrap();
            assert!(stat.is_some_and(|stat| stat.record.is_some()), "{at}: a blob of {tag}");
        }
    }
    for entry in world.cache().entries().unwrap() {
        let path = world.cache().blob_path(&entry.digest);
        let bytes = world.memory.bytes(&path).unwrap();
        assert_eq!(Digest::of(&bytes), entry.digest, "{at}: a cached blob");
    }
    if let Some(bytes) = world.memory.bytes(Path::new("/home/output")) {
        assert_eq!(bytes, model_bytes(1), "{at}: the output");
    }
}

/// A store with one model.
fn stored() -> Memory {
    let memory = Memory::new();
    memory.put("/home/one", &model_bytes(1));
    memory.put("/home/two", &model_bytes(2));
    World::new(&memory).put("one:a", "/home/one").unwrap();
    memory
}

#[test]
fn put() {
    let memory = stored();
    let there = |world: &World<'_>, at: &str| {
        assert!(world.tag("one:a").is_some() && world.tag("two:b").is_some(), "{at}");
    };
    at_every_call(&memory, "put", |world| world.put("two:b", "/home/two").map(drop), there);
    let first = World::new(&memory).tag("one:a");
    at_every_call(
        &memory,
        "put over",
        |world| world.put("one:a", "/home/two").map(drop),
        |world, at| assert!(world.tag("one:a") != first, "{at}"),
    );
    at_every_call(
        &memory,
        "put what is there",
        |world| world.put("one:c", "/home/one").map(drop),
        |world, at| assert!(world.tag("one:c").is_some(), "{at}"),
    );
}

#[test]
fn get() {
    each_way_of_hashing(|| {
        let cached = |world: &World<'_>, at: &str| {
            let digest = Digest::of(&model_bytes(1));
            assert!(world.cache().find(&digest, "").unwrap().is_some(), "{at}");
        };
        for memory in [stored(), stored().without_links()] {
            at_every_call(&memory, "get", |world| world.get("one:a").map(drop), cached);
        }
        let memory = stored().without_links();
        World::new(&memory).get("one:a").unwrap();
        at_every_call(
            &memory,
            "deliver",
            |world| {
                let path = &world.get("one:a")?[0].path;
                deliver(world.memory, path, Path::new("/home/output"), Delivery::Copy)
            },
            |world, at| assert!(world.memory.bytes(Path::new("/home/output")).is_some(), "{at}"),
        );
    });
}

#[test]
fn tag_and_rm() {
    let memory = stored();
    at_every_call(
        &memory,
        "tag",
        |world| {
            let remote = world.remote();
            let id = remote.tag(&"one:a".parse().unwrap())?.unwrap();
            remote.put_tag(&"other:b".parse().unwrap(), &id)
        },
        |world, at| assert_eq!(world.tag("other:b"), world.tag("one:a"), "{at}"),
    );
    at_every_call(
        &memory,
        "rm",
        |world| world.remote().remove_tag(&"one:a".parse().unwrap()).map(drop),
        |world, at| assert_eq!(world.tag("one:a"), None, "{at}"),
    );
}

#[test]
fn gc() {
    let memory = stored();
    let world = World::new(&memory);
    world.put("two:b", "/home/two").unwrap();
    world.remote().remove_tag(&"two:b".parse().unwrap()).unwrap();
    memory.pass(Duration::from_secs(100));
    at_every_call(
        &memory,
        "gc",
        |world| collect(&world.remote(), Duration::from_secs(50), false).map(drop),
        |world, at| {
            assert!(world.tag("one:a").is_some(), "{at}");
            let gone = world.remote().stat(&Digest::of(&model_bytes(2))).unwrap();
            assert!(gone.is_none(), "{at}");
        },
    );
}

#[test]
fn cache() {
    let memory = stored().without_links();
    let world = World::new(&memory);
    world.get("one:a").unwrap();
    world.put("two:b", "/home/two").unwrap();
    world.get("two:b").unwrap();
    let (one, two) = (Digest::of(&model_bytes(1)), Digest::of(&model_bytes(2)));
    memory.pass(Duration::from_secs(100));
    at_every_call(
        &memory,
        "pin and prune",
        |world| {
            let cache = world.cache();
            cache.pin(&one)?;
            cache.prune(None, false).map(drop)
        },
        |world, at| {
            let cache = world.cache();
            assert!(cache.find(&one, "").unwrap().is_some(), "{at}");
            assert!(cache.find(&two, "").unwrap().is_none(), "{at}");
        },
    );
    at_every_call(
        &memory,
        "quarantine",
        |world| {
            let cache = world.cache();
            if cache.find(&one, "")?.is_some() {
                cache.quarantine(&one)?;
            }
            world.get("one:a").map(drop)
        },
        |world, at| assert!(world.cache().find(&one, "").unwrap().is_some(), "{at}"),
    );
    assert_eq!(memory.bytes(&world.cache().blob_path(&one)).unwrap().len() as u64, 2 * PART + 999);
}
