//! The store on a real SeaweedFS.

use std::sync::atomic::{AtomicU32, Ordering};

use cnse::prng::Prng;
use cnse::store::Digest;
use cnse::store::files::Disk;
use cnse::store::record::{Layout, Record};
use cnse::store::remote::filer::{Filer, Settings};
use cnse::store::remote::{BlobStat, Remote, Upload};

use crate::common::wait_until;
use crate::weed::Weed;

const PART: u64 = 1 << 20;

fn filer(url: &str, variables: &[(&str, &str)]) -> Filer<'static> {
    let find = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Filer::new(&Disk, url, Settings::from_environment(find).unwrap()).unwrap()
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut prng = Prng::new(seed);
    let words = std::iter::repeat_with(|| prng.next_u64().to_le_bytes());
    words.flatten().take(bytes).collect()
}

fn parts(bytes: &[u8]) -> Vec<(u32, Digest, &[u8])> {
    let parts = bytes.chunks(PART as usize).enumerate();
    parts.map(|(index, part)| (index as u32, Digest::of(part), part)).collect()
}

fn upload(bytes: &[u8], seed: u64) -> Upload {
    let key = Digest::of(&[seed.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat());
    Upload { key, size: bytes.len() as u64, part_size: PART }
}

fn record(bytes: &[u8]) -> Record {
    let digests = parts(bytes).iter().map(|(_, digest, _)| *digest).collect();
    Record::new(bytes.len() as u64, PART, Layout::File, digests)
}

/// Sends what is not held; returns how many parts that were.
fn put(filer: &Filer<'_>, bytes: &[u8], seed: u64) -> usize {
    let sink = filer.begin(&upload(bytes, seed)).unwrap();
    let mut sent = 0;
    for (index, digest, part) in parts(bytes) {
        if !sink.holds(index, &digest).unwrap() {
            sink.put(index, &digest, part).unwrap();
            sent += 1;
        }
    }
    sink.complete(&Digest::of(bytes), record(bytes)).unwrap();
    sent
}

fn get(filer: &Filer<'_>, digest: &Digest) -> Option<(Layout, Vec<u8>)> {
    let stat = filer.stat(digest).unwrap()?;
    Some((stat.layout, range(filer, digest, &stat, 0, stat.size)))
}

fn range(filer: &Filer<'_>, digest: &Digest, stat: &BlobStat, from: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut take = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    filer.read(digest, stat, from, len, &mut take).unwrap();
    bytes
}

const WAYS: [(&str, Layout); 3] =
    [("chunks", Layout::File), ("tus", Layout::File), ("parts", Layout::Parts)];

#[test]
fn round_trips_by_every_way() {
    let Some(weed) = Weed::shared() else { return };
    for (number, (way, layout)) in WAYS.into_iter().enumerate() {
        let filer = filer(&format!("{}/ways/{way}", weed.url), &[("CNSE_FILER_UPLOAD", way)]);
        for (number_of_size, size) in [0, 1, PART, 3 * PART + 777].into_iter().enumerate() {
            let seed = (10 * number + number_of_size) as u64;
            let bytes = random(seed, size as usize);
            let digest = Digest::of(&bytes);
            assert_eq!(filer.stat(&digest).unwrap(), None);
            put(&filer, &bytes, seed);
            let (found, read) = get(&filer, &digest).unwrap();
            assert!(read == bytes, "{way}, {size} bytes");
            assert_eq!(found, if size == 0 { Layout::File } else { layout });
            let stat = filer.stat(&digest).unwrap().unwrap();
            assert_eq!(stat.record, Some(Record { layout: found, ..record(&bytes) }));
            if size > PART {
                // Across the end of a part.
                let middle = range(&filer, &digest, &stat, PART - 500, 1000);
                assert_eq!(middle, bytes[PART as usize - 500..][..1000]);
                let mut zeros = bytes.clone();
                zeros[..PART as usize].fill(0);
                put(&filer, &zeros, seed + 100);
                assert!(get(&filer, &Digest::of(&zeros)).unwrap().1 == zeros, "compressed");
            }
        }
        assert_eq!(filer.leftovers().unwrap(), []);
        let blobs = filer.blobs().unwrap();
        assert_eq!(blobs.len(), 5);
        for blob in blobs {
            assert!(blob.is_complete, "{blob:?}");
            filer.refresh(&blob.digest).unwrap();
            filer.remove_blob(&blob.digest).unwrap();
            assert_eq!(filer.stat(&blob.digest).unwrap(), None);
        }
        assert_eq!(filer.blobs().unwrap(), []);
    }
}

#[test]
fn an_upload_goes_on_where_it_was_whatever_came_in_between() {
    let Some(weed) = Weed::shared() else { return };
    for (way, _) in WAYS {
        let filer = filer(&format!("{}/resume/{way}", weed.url), &[("CNSE_FILER_UPLOAD", way)]);
        let bytes = random(1, 5 * PART as usize + 5);
        let digest = Digest::of(&bytes);
        let all = parts(&bytes);
        for stop in 0..all.len() {
            let sink = filer.begin(&upload(&bytes, 1)).unwrap();
            let held = all.iter().filter(|(index, digest, _)| sink.holds(*index, digest).unwrap());
            assert_eq!(held.count(), stop, "{way}");
            let (index, digest, part) = all[stop];
            sink.put(index, &digest, part).unwrap();
        }
        // One that is under way is left alone.
        let first = filer.begin(&upload(&bytes, 1)).unwrap();
        let second = filer.begin(&upload(&bytes, 1)).unwrap();
        let (index, part, _) = all[0];
        assert!(first.holds(index, &part).unwrap() && !second.holds(index, &part).unwrap());
        second.abort().unwrap();
        drop(first);
        assert_eq!(put(&filer, &bytes, 1), 0, "{way}");
        assert!(get(&filer, &digest).unwrap().1 == bytes, "{way}");
        assert_eq!(filer.leftovers().unwrap(), []);
        // It is there already.
        put(&filer, &bytes, 2);
        assert!(get(&filer, &digest).unwrap().1 == bytes, "{way}");
        // Left behind, and swept up; the blob that has the same bytes stays whole.
        let sink = filer.begin(&upload(&bytes, 3)).unwrap();
        sink.put(0, &all[0].1, all[0].2).unwrap();
        drop(sink);
        let leftovers = filer.leftovers().unwrap();
        assert_eq!(leftovers.len(), 1);
        filer.remove_leftover(&leftovers[0]).unwrap();
        assert_eq!(filer.leftovers().unwrap(), []);
        assert!(get(&filer, &digest).unwrap().1 == bytes, "{way}");
    }
}

#[test]
fn a_part_is_mended_in_place() {
    let Some(weed) = Weed::shared() else { return };
    for (way, _) in WAYS {
        let filer = filer(&format!("{}/mend/{way}", weed.url), &[("CNSE_FILER_UPLOAD", way)]);
        let (bytes, mut bad) = (random(7, 3 * PART as usize + 5), random(7, 3 * PART as usize + 5));
        let digest = Digest::of(&bytes);
        bad[0] ^= 1;
        bad[2 * PART as usize + 9] ^= 1;
        let sink = filer.begin(&upload(&bad, 1)).unwrap();
        for (index, digest, part) in parts(&bad) {
            sink.put(index, &digest, part).unwrap();
        }
        sink.complete(&digest, record(&bytes)).unwrap();
        assert!(get(&filer, &digest).unwrap().1 == bad, "{way}");
        let stat = filer.stat(&digest).unwrap().unwrap();
        for (index, _, part) in parts(&bytes) {
            if part != parts(&bad)[index as usize].2 {
                filer.mend(&digest, &stat, index, part).unwrap();
            }
        }
        assert!(get(&filer, &digest).unwrap().1 == bytes, "{way}");
        assert_eq!(filer.stat(&digest).unwrap().unwrap(), stat);
    }
}

#[test]
fn a_server_that_dies_in_mid_transfer_and_comes_back_costs_nothing() {
    let Some(mut weed) = Weed::start(&[], &[]) else { return };
    let url = weed.url.clone();
    let bytes = random(3, 24 * PART as usize + 99);
    let digest = Digest::of(&bytes);
    put(&filer(&format!("{url}/there"), &[]), &bytes, 0);
    let parts_done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for (way, _) in WAYS {
            let (url, bytes, parts_done) = (&url, &bytes, &parts_done);
            scope.spawn(move || {
                let filer = filer(&format!("{url}/{way}"), &[("CNSE_FILER_UPLOAD", way)]);
                let sink = filer.begin(&upload(bytes, 1)).unwrap();
                for (index, digest, part) in parts(bytes) {
                    sink.put(index, &digest, part).unwrap();
                    parts_done.fetch_add(1, Ordering::SeqCst);
                }
                sink.complete(&Digest::of(bytes), record(bytes)).unwrap();
            });
        }
        scope.spawn(|| {
            let filer = filer(&format!("{url}/there"), &[]);
            let stat = filer.stat(&digest).unwrap().unwrap();
            // Until the server has gone and come back.
            while parts_done.load(Ordering::SeqCst) < 3 * 25 {
                let read = range(&filer, &digest, &stat, 5 * PART, PART);
                assert!(read == bytes[5 * PART as usize..][..PART as usize]);
            }
        });
        wait_until("some parts are there", || {
            (parts_done.load(Ordering::SeqCst) >= 10).then_some(())
        });
        weed.kill();
        weed.restart();
    });
    for (way, _) in WAYS {
        let filer = filer(&format!("{url}/{way}"), &[]);
        assert!(get(&filer, &digest).unwrap().1 == bytes, "{way}");
        assert_eq!(filer.leftovers().unwrap(), []);
    }
    // What was acknowledged is there after another kill, too.
    weed.kill();
    weed.restart();
    assert!(get(&filer(&format!("{url}/there"), &[]), &digest).unwrap().1 == bytes);
}

#[test]
fn keys_and_tokens() {
    let keys =
        [("WEED_JWT_FILER_SIGNING_KEY", "write-key"), ("WEED_JWT_FILER_SIGNING_READ_KEY", "see")];
    let Some(weed) = Weed::start(&[], &keys) else { return };
    let bytes = random(3, 2 * PART as usize);
    let digest = Digest::of(&bytes);
    let (write, read) = (("CNSE_FILER_KEY", "write-key"), ("CNSE_FILER_READ_KEY", "see"));
    for (way, _) in WAYS {
        let url = format!("{}/keys/{way}", weed.url);
        let way = ("CNSE_FILER_UPLOAD", way);
        let error = filer(&url, &[way, write]).stat(&digest).unwrap_err();
        assert!(error.to_string().contains("status 401") && !error.is_retryable(), "{error}");
        // Refused before a byte of the file is sent.
        let error = filer(&url, &[way, read]).begin(&upload(&bytes, 1)).err().unwrap();
        assert!(error.to_string().contains("CNSE_FILER_KEY"), "{error}");
        put(&filer(&url, &[way, write, read]), &bytes, 1);
        assert!(get(&filer(&url, &[read]), &digest).unwrap().1 == bytes);
        let error = filer(&url, &[("CNSE_FILER_TOKEN", "abc")]).stat(&digest).unwrap_err();
        assert!(error.to_string().contains("wrong jwt"), "{error}");
    }
}

#[test]
fn manifests_and_tags() {
    let Some(weed) = Weed::shared() else { return };
    let filer = filer(&format!("{}/names", weed.url), &[]);
    let (first, second) = (b"{\"a\":1}".as_slice(), b"{\"b\":2}".as_slice());
    let (one, two) = (Digest::of(first), Digest::of(second));
    assert_eq!((filer.manifest(&one).unwrap(), filer.tags().unwrap()), (None, vec![]));
    filer.put_manifest(&one, first).unwrap();
    filer.put_manifest(&two, second).unwrap();
    assert_eq!(filer.manifest(&one).unwrap().as_deref(), Some(first));
    assert_eq!(filer.manifests().unwrap().len(), 2);
    let tags: Vec<_> = ["b:x", "a:latest", "a:q4_K.M-1"].map(|tag| tag.parse().unwrap()).into();
    for tag in &tags {
        filer.put_tag(tag, &one).unwrap();
    }
    filer.put_tag(&tags[0], &two).unwrap();
    assert_eq!(filer.tag(&tags[0]).unwrap(), Some(two));
    let listed: Vec<String> =
        filer.tags().unwrap().iter().map(|(tag, _)| tag.to_string()).collect();
    assert_eq!(listed, ["a:latest", "a:q4_K.M-1", "b:x"]);
    assert!(filer.remove_tag(&tags[0]).unwrap() && !filer.remove_tag(&tags[0]).unwrap());
    filer.remove_manifest(&one).unwrap();
    filer.remove_manifest(&one).unwrap();
    assert_eq!(filer.manifest(&one).unwrap(), None);
}

#[test]
fn more_entries_than_a_page_has() {
    let Some(weed) = Weed::shared() else { return };
    let filer = filer(&format!("{}/pages", weed.url), &[]);
    let ids: Vec<Digest> = (0..450u32).map(|n| Digest::of(&n.to_le_bytes())).collect();
    for id in &ids {
        filer.put_tag(&format!("m:{}", id.short()).parse().unwrap(), id).unwrap();
    }
    assert_eq!(filer.tags().unwrap().len(), ids.len());
}
