//! Models in and out on a file system in memory: what is sent again, healed, evicted and refused.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::limits::PART_BYTES_LEAST;
use crate::store::cache::Cache;
use crate::store::digest::Digest;
use crate::store::error::Error;
use crate::store::fetch::Fetched;
use crate::store::files::Files;
use crate::store::files::memory::{After, Fault, Memory};
use crate::store::gc::collect;
use crate::store::hash::Counters;
use crate::store::model::{Input, Resolved, StoredModel, Storing, get_model, put_model, resolve};
use crate::store::name::Tag;
use crate::store::remote::Remote;
use crate::store::remote::directory::Directory;
use crate::store::sha::tests::each_way_of_hashing;
use crate::store::verify::{Check, Depth, mend, verify_file, verify_remote};

pub(super) const PART: u64 = PART_BYTES_LEAST;

/// Three parts, the last one short; no byte is 0.
pub(super) fn model_bytes(seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=249).map(|i| i ^ seed | 1).collect();
    bytes = bytes.repeat((2 * PART + 999).div_ceil(250) as usize);
    bytes.truncate(2 * PART as usize + 999);
    bytes
}

/// A store and a cache on one file system.
pub(super) struct World<'m> {
    pub memory: &'m Memory,
    budget: Option<u64>,
    pub counters: Counters,
}

impl<'m> World<'m> {
    pub fn new(memory: &'m Memory) -> World<'m> {
        World { memory, budget: None, counters: Counters::default() }
    }

    pub fn remote(&self) -> Directory<'_> {
        Directory::new(self.memory, Path::new("/store"))
    }

    pub fn cache(&self) -> Cache<'_> {
        Cache::new(self.memory, Path::new("/cache"), self.budget)
    }

    pub fn put(&self, tag: &str, path: &str) -> Result<StoredModel, Error> {
        let input = Input { path: path.into(), name: "model.bin".to_owned() };
        let storing = Storing {
            tag: Some(tag.parse().unwrap()),
            licence: None,
            part_size: PART,
            threads: 1,
            is_raw: false,
            at: "2026-11-24T00:00:00.000Z".to_owned(),
        };
        put_model(self.memory, &self.remote(), &[input], &storing, &self.counters)
    }

    pub fn get(&self, tag: &str) -> Result<Vec<Fetched>, Error> {
        let (remote, cache) = (self.remote(), self.cache());
        let resolved = resolve(&remote, &cache, false, &tag.parse().unwrap())?;
        get_model(&cache, Some(&remote), &resolved, tag, 1, &self.counters)
    }

    pub fn tag(&self, tag: &str) -> Option<Digest> {
        self.remote().tag(&tag.parse::<Tag>().unwrap()).unwrap()
    }

    fn transferred(&self) -> (u64, u64) {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.counters.transferred), load(&self.counters.reused))
    }
}

fn with_model() -> Memory {
    let memory = Memory::new().without_links();
    memory.put("/home/one", &model_bytes(1));
    memory
}

#[test]
fn what_is_there_is_not_sent_again() {
    each_way_of_hashing(|| {
        let memory = with_model();
        let first = World::new(&memory);
        let stored = first.put("m:a", "/home/one").unwrap();
        assert_eq!(stored.blobs[0].digest, Digest::of(&model_bytes(1)));
        assert_eq!(first.transferred(), (2 * PART + 999, 0));
        let second = World::new(&memory);
        assert!(second.put("m:b", "/home/one").unwrap().blobs[0].was_there);
        assert_eq!(second.transferred(), (0, 0));
    });
}

#[test]
fn a_killed_transfer_goes_on_where_it_was() {
    each_way_of_hashing(|| {
        let total = 2 * PART + 999;
        let memory = with_model();
        let (mut sent_again, mut went_on) = (0, 0);
        for call in 0.. {
            let killed = memory.with_fault(call, Fault::Stop);
            let first = World::new(&killed);
            let result = first.put("m:a", "/home/one");
            if !killed.has_met_fault() {
                assert!(result.is_ok());
                break;
            }
            // What the first process had sent the second one does not send; a torn part it does.
            let left = killed.after(After::Kill);
            let second = World::new(&left);
            second.put("m:a", "/home/one").unwrap();
            let ((sent, _), (more, reused)) = (first.transferred(), second.transferred());
            assert!(sent + more <= total, "call {call}: {sent} and then {more} of {total}");
            assert!(more == 0 || more + reused == total, "call {call}");
            (sent_again, went_on) =
                (sent_again + sent + more - total.min(sent + more), went_on + reused);
        }
        assert!(sent_again == 0 && went_on > 0);
        World::new(&memory).put("m:a", "/home/one").unwrap();
        for call in 0.. {
            let killed = memory.with_fault(call, Fault::Stop);
            let first = World::new(&killed);
            let result = first.get("m:a");
            if !killed.has_met_fault() {
                assert!(result.is_ok());
                break;
            }
            let left = killed.after(After::Kill);
            let second = World::new(&left);
            second.get("m:a").unwrap();
            let ((got, _), (more, _)) = (first.transferred(), second.transferred());
            // A part that came and could not be written comes again.
            assert!(got + more <= total + PART, "call {call}: {got} and then {more} of {total}");
        }
    });
}

#[test]
fn a_damaged_part_is_found_and_mended_alone() {
    each_way_of_hashing(|| {
        let memory = with_model();
        let world = World::new(&memory);
        let stored = world.put("m:a", "/home/one").unwrap();
        let (digest, remote, cache) = (stored.blobs[0].digest, world.remote(), world.cache());
        world.get("m:a").unwrap();
        // In the cache: quarantined, and one part is fetched.
        let path = cache.blob_path(&digest);
        memory.flip(&path, PART as usize + 5);
        let record = cache.record(&digest).unwrap();
        let check = |depth| Check { digest: &digest, record: &record, depth, threads: 2 };
        let counters = Counters::default();
        let found = verify_file(&memory, &path, check(Depth::Parts), &counters).unwrap();
        assert_eq!((found.damaged.clone(), found.is_sound()), (vec![1], false));
        cache.quarantine(&digest).unwrap();
        let again = World::new(&memory);
        again.get("m:a").unwrap();
        assert_eq!(again.transferred(), (PART, PART + 999));
        let found = verify_file(&memory, &path, check(Depth::Whole), &counters).unwrap();
        assert!(found.is_sound());
        // In the store: mended from the cache, by one part.
        let blob = Path::new("/store").join(crate::store::layout::blob(&digest));
        memory.flip(&blob, 3);
        let stat = remote.stat(&digest).unwrap().unwrap();
        let look =
            || verify_remote(&memory, &remote, &stat, check(Depth::Parts), &counters).unwrap();
        let mut found = look();
        assert_eq!(found.damaged, [0]);
        mend(&memory, &remote, &digest, &record, &path, &mut found).unwrap();
        assert!(found.is_sound() && look().damaged.is_empty());
        assert_eq!(memory.bytes(&blob).unwrap(), model_bytes(1));
    });
}

#[test]
fn a_damaged_store_is_told_and_leaves_nothing_visible() {
    each_way_of_hashing(|| {
        let memory = with_model();
        let world = World::new(&memory);
        let digest = world.put("m:a", "/home/one").unwrap().blobs[0].digest;
        memory.flip(
            &Path::new("/store").join(crate::store::layout::blob(&digest)),
            2 * PART as usize,
        );
        let error = world.get("m:a").unwrap_err();
        assert!(matches!(error, Error::Damaged { part: Some(2), .. }), "{error}");
        assert!(world.cache().find(&digest, "").unwrap().is_none());
        // Parts that came are kept.
        let again = World::new(&memory);
        again.get("m:a").unwrap_err();
        assert_eq!(again.transferred().1, 2 * PART);
    });
}

#[test]
fn the_least_recently_used_goes_and_never_what_is_held() {
    let memory = Memory::new().without_links();
    let size = 2 * PART + 999;
    for i in 1..=5_u8 {
        memory.put(&format!("/home/{i}"), &model_bytes(10 * i));
        World::new(&memory).put(&format!("m:t{i}"), &format!("/home/{i}")).unwrap();
    }
    let digest = |i: u8| Digest::of(&model_bytes(10 * i));
    let world = World { budget: Some(3 * size + 20_000), ..World::new(&memory) };
    let is_cached = |i: u8| memory.stat(&world.cache().blob_path(&digest(i))).is_ok();
    for i in 1..=3 {
        world.get(&format!("m:t{i}")).unwrap();
        memory.pass(Duration::from_secs(100));
    }
    // The first becomes the last used; of the others one is open, one may go.
    world.get("m:t1").unwrap();
    memory.pass(Duration::from_secs(100));
    memory.use_file(&world.cache().blob_path(&digest(2)));
    world.get("m:t4").unwrap();
    assert_eq!([1, 2, 3, 4].map(is_cached), [true, true, false, true]);
    memory.pass(Duration::from_secs(100));
    world.cache().pin(&digest(1)).unwrap();
    world.get("m:t5").unwrap();
    assert_eq!([1, 2, 4, 5].map(is_cached), [true, true, false, true]);
    // The last one was asked for a moment ago: nothing may go.
    let error = world.get("m:t3").unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    assert_eq!([1, 2, 5].map(is_cached), [true, true, true]);
    let leftovers = memory.list(Path::new("/cache/partial")).unwrap();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    // Without its index the cache is what its folder says.
    for name in memory.list(Path::new("/cache/index")).unwrap() {
        memory.remove(&Path::new("/cache/index").join(name)).unwrap();
    }
    assert_eq!(world.cache().entries().unwrap().len(), 3);
}

#[test]
fn no_room_is_said_before_anything_is_fetched() {
    let memory = with_model();
    let world = World::new(&memory);
    world.put("m:a", "/home/one").unwrap();
    memory.set_capacity(4 * PART + 5000);
    let error = world.get("m:a").unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }) && error.is_full(), "{error}");
    let full = World::new(&memory);
    memory.put("/home/two", b"x");
    memory.set_capacity(4 * PART + 6000);
    let error = full.put("m:b", "/home/one").map(drop);
    // It is there: nothing has to be written but the manifest, and that does not fit or does.
    assert!(error.is_ok() || error.is_err_and(|error| error.is_full()));
}

#[test]
fn gc_spares_what_is_young_and_what_is_named() {
    let memory = with_model();
    let world = World::new(&memory);
    memory.put("/home/two", &model_bytes(2));
    world.put("m:a", "/home/one").unwrap();
    world.put("m:b", "/home/two").unwrap();
    world.remote().remove_tag(&"m:b".parse().unwrap()).unwrap();
    let grace = Duration::from_secs(50);
    let young = collect(&world.remote(), grace, false).unwrap();
    assert!(young.blobs.is_empty() && young.manifests.is_empty() && young.kept == 2);
    memory.pass(Duration::from_secs(100));
    let dry = collect(&world.remote(), grace, true).unwrap();
    assert_eq!((dry.blobs.len(), dry.manifests.len(), dry.kept), (1, 1, 1));
    // Found again by a `put`, it is young again.
    world.put("m:c", "/home/two").unwrap();
    assert!(collect(&world.remote(), grace, false).unwrap().blobs.is_empty());
    let id = world.tag("m:c").unwrap();
    world.remote().remove_tag(&"m:c".parse().unwrap()).unwrap();
    memory.pass(Duration::from_secs(100));
    assert_eq!(collect(&world.remote(), grace, false).unwrap().blobs.len(), 1);
    // A tag whose manifest is missing: nobody knows what it names, and nothing goes.
    world.remote().put_tag(&"m:lost".parse().unwrap(), &id).unwrap();
    assert!(matches!(collect(&world.remote(), grace, false), Err(Error::NotFound { .. })));
}

#[test]
fn references_find_what_they_mean() {
    let memory = with_model();
    let world = World::new(&memory);
    let stored = world.put("m:a", "/home/one").unwrap();
    let (remote, cache) = (world.remote(), world.cache());
    let find =
        |text: &str, is_offline| resolve(&remote, &cache, is_offline, &text.parse().unwrap());
    let digest = stored.blobs[0].digest;
    assert_eq!(find(&digest.to_string()[..8], false).unwrap(), Resolved::Blob(digest));
    assert!(matches!(find("m:a", true), Err(Error::Offline { .. })));
    for text in ["m:a", "m", &stored.id.to_string(), &stored.id.to_string()[..12]] {
        let found = find(text, false).unwrap();
        assert!(matches!(found, Resolved::Model { id, .. } if id == stored.id), "{text}");
    }
    assert!(matches!(find("m:a", true).unwrap(), Resolved::Model { .. }));
    world.put("m:b", "/home/one").unwrap();
    let several = find("m", false).unwrap_err().to_string();
    assert!(several.contains("m:a, m:b"), "{several}");
    assert!(matches!(find("abcdef", false), Err(Error::NotFound { .. })));
}
