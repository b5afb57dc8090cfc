//! What the store's tests share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A fresh folder, removed at the end.
pub(super) struct TestFolder(PathBuf);

impl TestFolder {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn test_folder(name: &str) -> TestFolder {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(format!("cnse-store-{name}-{pid}-{number}"));
    fs::create_dir_all(&folder).unwrap();
    TestFolder(folder)
}

mod faults;
mod transfers;
