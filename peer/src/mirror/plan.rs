//! Where each piece of the files that are wanted comes from: from this disk, or from a chunk that is fetched.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::PoisonError,
};

use cortex_wire::{
    limits,
    mirror::{
        entry::{Sid, Span},
        path::RelPath,
        replica::Trouble,
    },
};

use super::{
    cache::Known,
    chunks::{ChunkMap, Cut},
    download::{Kitchen, Staged, Wanted},
};

/// From so many bytes to fetch, all large files on this disk are searched for them…
const WORTH_SEARCHING: u64 = 8 * 1024 * 1024;
/// …and this many are opened for one.
const DONORS: usize = 16;

/// Neighbours are read at once, up to so many bytes.
pub(super) const RUN_BYTES: usize = 1024 * 1024;

/// Where a piece of a file comes from.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// Chunks that follow each other in a large file on this disk, and their bytes.
    Local { donor: usize, offset: u64, length: usize, cuts: Vec<Cut> },
    /// From a chunk that comes now.
    Next(Span),
    /// From the chunk that came last.
    Last(Span),
}

/// A step of putting files together. Steps take chunks in their order.
#[derive(Debug)]
pub(super) enum Step {
    /// One chunk, and all small files that lie in it.
    Bundle(Sid, Vec<(usize, Span)>),
    /// A file of several pieces, some of them in these files.
    File { at: usize, pieces: Vec<Piece>, donors: Vec<RelPath> },
    /// A file that lies here under another path.
    Copy { at: usize, from: RelPath, spans: Vec<Span> },
}

pub(super) struct Plan {
    pub(super) wanted: Vec<Wanted>,
    pub(super) steps: Vec<Step>,
    pub(super) outcomes: Vec<Option<Result<Staged, Trouble>>>,
}

impl Plan {
    pub(super) fn new(kitchen: &Kitchen, files: Vec<(Wanted, Result<Vec<Span>, Trouble>)>) -> Self {
        let here = contents_here(kitchen, &files);
        let mut bundles: BTreeMap<Sid, Vec<(usize, Span)>> = BTreeMap::new();
        let mut plan = Self { wanted: Vec::new(), steps: Vec::new(), outcomes: Vec::new() };
        let mut large = Vec::new();
        for (at, (wanted, spans)) in files.into_iter().enumerate() {
            let left = kitchen.stage.take_left(&wanted.content.hash);
            let mut outcome = None;
            match (left, spans) {
                (_, Err(trouble)) => outcome = Some(Err(trouble)),
                (Some(name), _) => outcome = Some(Ok(Staged { name, map: None })),
                (None, Ok(spans)) => match (here.get(&wanted.content.hash), spans.as_slice()) {
                    (Some(from), _) => plan.steps.push(Step::Copy { at, from: from.clone(), spans }),
                    (None, [span]) => bundles.entry(span.sid).or_default().push((at, *span)),
                    (None, _) => large.push((at, wanted.clone(), spans)),
                },
            }
            plan.wanted.push(wanted);
            plan.outcomes.push(outcome);
        }
        plan.steps.extend(plan_files(kitchen, &large));
        plan.steps.extend(bundles.into_iter().map(|(sid, files)| Step::Bundle(sid, files)));
        plan
    }

    /// The chunks, in the order in which they are needed.
    pub(super) fn sids(&self) -> Vec<Sid> {
        let mut sids = Vec::new();
        for step in &self.steps {
            match step {
                Step::Bundle(sid, _) => sids.push(*sid),
                Step::File { pieces, .. } => {
                    sids.extend(pieces.iter().filter_map(|piece| if let Piece::Next(span) = piece { Some(span.sid) } else { None }));
                }
                Step::Copy { .. } => {}
            }
        }
        sids
    }
}

/// Wanted contents that some file on this disk has.
fn contents_here(kitchen: &Kitchen, files: &[(Wanted, Result<Vec<Span>, Trouble>)]) -> HashMap<[u8; 32], RelPath> {
    let (cache, afresh) = (kitchen.cache.lock().unwrap_or_else(PoisonError::into_inner), kitchen.afresh());
    let wanted: HashSet<[u8; 32]> = files
        .iter()
        .map(|(wanted, _)| wanted.content.hash)
        .filter(|content| cache.may_hold(content) && !afresh.contains(content))
        .collect();
    if wanted.is_empty() {
        return HashMap::new();
    }
    let files = cache.iter().filter_map(|(path, known)| if let Known::File(file) = known { Some((path, file)) } else { None });
    files
        .filter(|(_, file)| file.stat.size > 0 && wanted.contains(&file.content))
        .map(|(path, file)| (file.content, path.clone()))
        .collect()
}

/// A chunk, or a part of one: what is cut alike has the same name.
type Part = (Sid, u32, u32);

/// Where parts of chunks lie on this disk.
type Parts = HashMap<Part, (RelPath, u64, Cut)>;

fn part_of(span: &Span) -> Part {
    (span.sid, span.offset, span.length)
}

fn plan_files(kitchen: &Kitchen, files: &[(usize, Wanted, Vec<Span>)]) -> Vec<Step> {
    let old: Vec<Parts> = files.iter().map(|(_, wanted, _)| old_parts(kitchen, wanted)).collect();
    let missing: Vec<&Span> =
        files.iter().zip(&old).flat_map(|((_, _, spans), old)| spans.iter().filter(|span| !old.contains_key(&part_of(span)))).collect();
    let bytes: u64 = missing.iter().map(|span| u64::from(span.length)).sum();
    let elsewhere = if bytes >= WORTH_SEARCHING { parts_here(kitchen, &missing) } else { Parts::new() };
    let step = |((at, wanted, spans), old): (&(usize, Wanted, Vec<Span>), Parts)| {
        let elsewhere = if kitchen.afresh().contains(&wanted.content.hash) { &Parts::new() } else { &elsewhere };
        plan_file(*at, spans, &old, elsewhere)
    };
    files.iter().zip(old).map(step).collect()
}

/// What the file's last version has.
fn old_parts(kitchen: &Kitchen, wanted: &Wanted) -> Parts {
    let old = {
        let cache = kitchen.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.file(&wanted.path).map(|file| file.content)
    };
    let map = old.filter(|_| !kitchen.afresh().contains(&wanted.content.hash)).and_then(|content| kitchen.store.map(&content));
    let mut parts = Parts::new();
    map.iter().for_each(|map| add_parts(&mut parts, &wanted.path, map, |_| true));
    parts
}

/// What the large files here have of these.
fn parts_here(kitchen: &Kitchen, wanted: &[&Span]) -> Parts {
    let wanted: HashSet<Sid> = wanted.iter().map(|span| span.sid).collect();
    let here: HashMap<[u8; 32], RelPath> = {
        let cache = kitchen.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let files = cache.iter().filter_map(|(path, known)| if let Known::File(file) = known { Some((path, file)) } else { None });
        files.filter(|(_, file)| file.stat.size > limits::CHUNK_BYTES as u64).map(|(path, file)| (file.content, path.clone())).collect()
    };
    let mut parts = Parts::new();
    if !here.is_empty() {
        kitchen.store.each_map(|content, map| {
            if let Some(path) = here.get(content) {
                add_parts(&mut parts, path, &map, |sid| wanted.contains(sid));
            }
        });
    }
    parts
}

fn add_parts(parts: &mut Parts, path: &RelPath, map: &ChunkMap, wanted: impl Fn(&Sid) -> bool) {
    let mut offset = 0;
    for cut in &map.0 {
        if wanted(&cut.sid) {
            parts.entry((cut.sid, cut.offset, cut.length)).or_insert_with(|| (path.clone(), offset, *cut));
        }
        offset += u64::from(cut.length);
    }
}

fn plan_file(at: usize, spans: &[Span], old: &Parts, elsewhere: &Parts) -> Step {
    let mut donors: Vec<RelPath> = Vec::new();
    let mut last = None;
    let mut pieces = Vec::with_capacity(spans.len());
    for span in spans {
        let here = old.get(&part_of(span)).or_else(|| elsewhere.get(&part_of(span))).and_then(|(path, offset, cut)| {
            let known = donors.iter().position(|donor| donor == path);
            let donor = known.or_else(|| (donors.len() < DONORS).then(|| donors.push(path.clone())).map(|()| donors.len() - 1))?;
            Some((donor, *offset, *cut))
        });
        pieces.push(match here {
            Some((donor, offset, cut)) => {
                if !follows(pieces.last_mut(), donor, offset, cut) {
                    pieces.push(Piece::Local { donor, offset, length: cut.length as usize, cuts: vec![cut] });
                }
                continue;
            }
            None if last == Some(span.sid) => Piece::Last(*span),
            None => {
                last = Some(span.sid);
                Piece::Next(*span)
            }
        });
    }
    Step::File { at, pieces, donors }
}

/// Adds a chunk to the piece before it, when it follows there. Chunks of the largest size stay alone: they may be zeroes, which are not written.
fn follows(last: Option<&mut Piece>, from: usize, at: u64, cut: Cut) -> bool {
    let most = limits::CHUNK_BYTES as u32;
    match last {
        Some(Piece::Local { donor, offset, length, cuts })
            if *donor == from
                && *offset + *length as u64 == at
                && *length + cut.length as usize <= RUN_BYTES
                && cut.length < most
                && cuts.iter().all(|cut| cut.length < most) =>
        {
            *length += cut.length as usize;
            cuts.push(cut);
            true
        }
        _ => false,
    }
}
