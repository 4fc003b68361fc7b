// SPDX-License-Identifier: GPL-2.0

//! What the kernel has in use.

use std::collections::BTreeMap;
use std::time::Duration;

/// A look at /proc/meminfo and /proc/slabinfo.
pub struct Memory {
    available: u64,
    slab: u64,
    /// Of each slab cache: objects and their size.
    caches: BTreeMap<String, (u64, u64)>,
}

/// Objects by which one cache may have grown: fewer than VMs are made in a round, so that one lost with each shows.
const OBJECTS: u64 = 300;
/// Caches that follow the files in use, or are the checkers' own: debugobjects' pool, and kmemleak's records, of which there
/// is one for each object of any cache, these among them.
const LIVELY: [&str; 6] = [
    "dentry",
    "_inode_cache",
    "fuse_inode",
    "radix_tree_node",
    "debug_objects_cache",
    "kmemleak_object",
];
/// From which growth on a cache is named.
const WORTH_NAMING: u64 = 100;

/// Gives back what the allocator keeps: empty slabs, and with KASAN what was freed (it waits in a quarantine, for late uses
/// of it to be caught).
fn shrink() {
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    for cache in std::fs::read_dir("/sys/kernel/slab").into_iter().flatten() {
        // Several names may stand for one cache.
        if let Some(c) = cache
            .ok()
            .filter(|c| c.file_type().is_ok_and(|t| !t.is_symlink()))
        {
            let _ = std::fs::write(c.path().join("shrink"), "1");
        }
    }
}

impl Memory {
    /// Now, with clean caches dropped.
    pub fn now() -> Memory {
        shrink();
        std::thread::sleep(Duration::from_millis(500));
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |name: &str| {
            meminfo
                .lines()
                .find_map(|l| {
                    l.strip_prefix(name)?
                        .strip_prefix(':')?
                        .split_whitespace()
                        .next()?
                        .parse()
                        .ok()
                })
                .unwrap_or(0)
        };
        let mut caches = BTreeMap::new();
        for line in std::fs::read_to_string("/proc/slabinfo")
            .unwrap_or_default()
            .lines()
            .skip(2)
        {
            let mut w = line.split_whitespace();
            if let (Some(name), Some(Ok(n)), Some(_), Some(Ok(size))) = (
                w.next(),
                w.next().map(str::parse),
                w.next(),
                w.next().map(str::parse),
            ) {
                caches.insert(name.to_owned(), (n, size));
            }
        }
        Memory {
            available: field("MemAvailable"),
            slab: field("SUnreclaim"),
            caches,
        }
    }

    /// As it is when what is freed late has been freed; waits up to a minute or two for it.
    pub fn settled(before: &Memory, tolerance: u64) -> Memory {
        let mut now = Memory::now();
        for _ in 0..30 {
            if before.compare(&now, tolerance).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_secs(2));
            now = Memory::now();
        }
        now
    }

    /// Whether `after` is no more than `tolerance` MiB beyond `self`.
    pub fn compare(&self, after: &Memory, tolerance: u64) -> Result<String, String> {
        let less = self.available.saturating_sub(after.available) / 1024;
        let slab = after.slab.saturating_sub(self.slab) / 1024;
        let mut grown: Vec<_> = after
            .caches
            .iter()
            .map(|(name, (n, size))| {
                (
                    n.saturating_sub(self.caches.get(name).map_or(0, |c| c.0)),
                    *size,
                    name,
                )
            })
            .filter(|(n, _, _)| *n > WORTH_NAMING)
            .collect();
        grown.sort_by_key(|(n, size, _)| std::cmp::Reverse(n * size));
        let list: Vec<String> = grown
            .iter()
            .take(8)
            .map(|(n, size, name)| format!("{name} +{n} of {size} bytes"))
            .collect();
        let text = format!(
            "{less} MiB fewer available, {slab} MiB more in slabs; {}",
            list.join(", ")
        );
        let many = grown
            .iter()
            .any(|(n, _, name)| *n > OBJECTS && !LIVELY.iter().any(|l| name.ends_with(l)));
        if less > tolerance || slab > tolerance || many {
            Err(text)
        } else {
            Ok(text)
        }
    }
}
