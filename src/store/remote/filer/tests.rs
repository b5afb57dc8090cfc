//! The filer's client against a filer in memory that fails in every way at every request.

use std::io;
use std::time::Duration;

use super::fake::{Fake, Fault};
use super::read::Read;
use super::*;
use crate::limits::PART_BYTES_LEAST;
use crate::prng::Prng;
use crate::store::files::Disk;
use crate::store::name::Tag;
use crate::store::remote::Upload;

const PART: u64 = PART_BYTES_LEAST;

fn filer(fake: &Fake) -> Filer<'static> {
    let mut filer = Filer::new(&Disk, &fake.url, Settings::default()).unwrap();
    filer.http.patience = Duration::from_secs(5);
    filer
}

fn random(bytes: usize) -> Vec<u8> {
    let mut prng = Prng::new(bytes as u64);
    (0..bytes).map(|_| prng.next_u64() as u8).collect()
}

fn put(filer: &Filer<'_>, bytes: &[u8]) -> Result<(), Error> {
    let key = Digest::of(b"key");
    let sink = filer.begin(&Upload { key, size: bytes.len() as u64, part_size: PART })?;
    let mut parts = Vec::new();
    for (index, part) in bytes.chunks(PART as usize).enumerate() {
        let digest = Digest::of(part);
        if !sink.holds(index as u32, &digest)? {
            sink.put(index as u32, &digest, part)?;
        }
        parts.push(digest);
    }
    let record = Record::new(bytes.len() as u64, PART, Layout::File, parts);
    sink.complete(&Digest::of(bytes), record)
}

fn get(filer: &Filer<'_>, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
    let Some(stat) = filer.stat(digest)? else { return Ok(None) };
    let mut bytes = Vec::new();
    filer.read(digest, &stat, 0, stat.size, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(Some(bytes))
}

const FAULTS: [Fault; 7] = [
    Fault::Status(500),
    Fault::Status(503),
    Fault::Gone,
    Fault::Lost,
    Fault::Half,
    Fault::WrongSize,
    Fault::Slow,
];

#[test]
fn every_fault_at_every_request_is_survived() {
    let bytes = random(2 * PART as usize + 100);
    let digest = Digest::of(&bytes);
    for has_tus in [false, true] {
        for fault in FAULTS {
            for number in 0.. {
                let fake = Fake::start(has_tus);
                let filer = filer(&fake);
                fake.fail(number, 1, fault);
                let at = format!("tus: {has_tus}, {fault:?} at request {number}");
                // A first contact that fails is retried for a moment, too.
                put(&filer, &bytes).unwrap_or_else(|error| panic!("{at}: {error}"));
                let read = get(&filer, &digest).unwrap_or_else(|error| panic!("{at}: {error}"));
                assert!(read.as_deref() == Some(bytes.as_slice()), "{at}");
                let record = filer.stat(&digest).unwrap().unwrap().record.unwrap();
                assert_eq!(record.layout == Layout::File, has_tus, "{at}");
                let names = fake.names();
                assert!(names.iter().all(|name| name.starts_with("/s/blobs/")), "{at}: {names:?}");
                if !fake.has_failed() {
                    break;
                }
            }
        }
    }
}

/// As if the process had been killed at any request: the next one goes on, and nothing was visible.
#[test]
fn stopped_at_every_request_it_goes_on() {
    let bytes = random(3 * PART as usize);
    let digest = Digest::of(&bytes);
    for has_tus in [false, true] {
        for number in 1.. {
            let fake = Fake::start(has_tus);
            let first = filer(&fake);
            fake.fail(number, u32::MAX, Fault::Status(400));
            let stopped = put(&first, &bytes);
            fake.heal();
            fake.leave();
            let (sent, _) = fake.traffic();
            if stopped.is_ok() {
                assert!(number > 10);
                break;
            }
            let after = filer(&fake);
            if let Some(stat) = after.stat(&digest).unwrap()
                && stat.record.is_some()
            {
                assert_eq!(get(&after, &digest).unwrap().as_deref(), Some(bytes.as_slice()));
            }
            put(&after, &bytes).unwrap_or_else(|error| panic!("{has_tus} {number}: {error}"));
            assert_eq!(get(&after, &digest).unwrap().as_deref(), Some(bytes.as_slice()));
            let (again, _) = fake.traffic();
            // Parts that had been answered are not sent again; notes and records are small.
            let whole = bytes.len() as u64;
            assert!(sent + again < whole + PART + 8_000, "{number}: {sent} and {again}");
            assert_eq!(after.leftovers().unwrap(), []);
        }
    }
}

#[test]
fn a_broken_download_goes_on_at_the_byte() {
    let fake = Fake::start(false);
    let filer = filer(&fake);
    let bytes = random(1_000_000);
    fake.set("/s/x", &bytes);
    let mut read = Vec::new();
    let mut take = |piece: &[u8]| {
        read.extend_from_slice(piece);
        Ok(())
    };
    // Some answers are cut in half.
    fake.fail(0, 3, Fault::Half);
    let (all, http) = (bytes.len() as u64, &filer.http);
    assert_eq!(http.read_range("/s/x", 0, all, all, &mut take).unwrap(), Read::Whole);
    assert!(read == bytes);
    assert_eq!(fake.traffic().1, 1_000_000);
    let mut ignore = |_: &[u8]| Ok(());
    let wrong = http.read_range("/s/x", 0, 10, 999_999, &mut ignore).unwrap_err();
    assert!(wrong.to_string().contains("1000000 bytes, not 999999"), "{wrong}");
    assert!(!wrong.is_retryable());
    assert_eq!(http.read_range("/s/y", 0, 10, 10, &mut ignore).unwrap(), Read::Missing);
    // Who takes the bytes may have enough.
    let mut full =
        |_: &[u8]| Err(Error::io("write", "/disk".as_ref(), io::ErrorKind::StorageFull.into()));
    let error = http.read_range("/s/x", 0, all, all, &mut full).unwrap_err().to_string();
    assert!(error.contains("/disk"), "{error}");
}

#[test]
fn a_tag_is_listed_even_if_its_folder_was_lost() {
    let fake = Fake::start(false);
    let filer = filer(&fake);
    let (tag, id) = (Tag::new("m", "q").unwrap(), Digest::of(b"manifest"));
    fake.lose_folder("/s/tags/m");
    // As an upload finds it whose filer was killed in the middle of its tag.
    fake.set("/s/tags/m/q", b"");
    let other = Tag::new("a", "b").unwrap();
    filer.put_tag(&other, &id).unwrap();
    assert_eq!(filer.tags().unwrap(), [(other.clone(), id)]);
    filer.put_tag(&tag, &id).unwrap();
    assert_eq!(filer.tags().unwrap(), [(other, id), (tag, id)]);
}

#[test]
fn a_filer_that_has_just_come_back_is_not_taken_at_its_word() {
    let fake = Fake::start(false);
    let mut filer = filer(&fake);
    fake.set("/s/folder/x", b"abc");
    // What it says of a folder if its table fails it.
    fake.fail(0, 1, Fault::Status(404));
    assert_eq!(filer.http.list("/s/folder").unwrap().len(), 1);
    assert_eq!(filer.http.list("/s/none").unwrap(), []);
    let mut looks = 0;
    let found = filer.http.settle(|| {
        looks += 1;
        Ok(Some(looks).filter(|looks| *looks == 3))
    });
    assert_eq!(found.unwrap(), Some(3));
    filer.http.patience = Duration::ZERO;
    assert_eq!(filer.http.settle(|| Ok(None::<()>)).unwrap(), None);
}

#[test]
fn errors_say_what_to_do() {
    let fake = Fake::start(false);
    let mut filer = filer(&fake);
    for (status, says, retryable) in [
        (401, "CNSE_FILER_KEY", false),
        (507, "full, over its quota", false),
        (400, "status 400", false),
        (503, "goes on where it stopped", true),
    ] {
        filer.stat(&Digest::of(b"")).unwrap();
        filer.http.patience = Duration::ZERO;
        fake.fail(0, u32::MAX, Fault::Status(status));
        let error = filer.put_manifest(&Digest::of(b""), b"{}").unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("/s/manifests/"), "{text}");
        assert!(text.starts_with(&fake.url[..fake.url.len() - 2]), "{text}");
        assert_eq!(error.is_retryable(), retryable);
        fake.heal();
        filer.http.patience = Duration::from_secs(5);
    }
    let nobody = Filer::new(&Disk, "http://127.0.0.1:1", Settings::default()).unwrap();
    let error = nobody.stat(&Digest::of(b"")).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("127.0.0.1:1"), "{error}");
    let error = Filer::new(&Disk, "ftp://h", Settings::default()).err().unwrap();
    assert!(error.contains("\"ftp://h\" is no filer"), "{error}");
}

#[test]
fn settings() {
    let of = |name: &'static str, value: &'static str| {
        Settings::from_environment(move |asked| (asked == name).then(|| value.to_owned()))
    };
    assert_eq!(of("CNSE_FILER_UPLOAD", "tus").unwrap().way, Some(Way::Tus));
    assert_eq!(of("CNSE_FILER_UPLOAD", "").unwrap().way, None);
    assert!(of("CNSE_FILER_UPLOAD", "x").err().unwrap().contains("auto, chunks, tus and parts"));
    assert!(of("CNSE_FILER_CA", "/no/such.pem").err().unwrap().contains("/no/such.pem"));
}
