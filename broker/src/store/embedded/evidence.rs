//! What is kept for good: the journal's records without their bodies, in append-only files.
//!
//! One journal segment at a time is copied, with a mark behind it, and synced. What follows the last mark was cut off
//! in the middle, is still in the journal, and is cut at the next start. Anything else that does not read is damage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::keys::{Area, Location};
use super::layout::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader, NO_LEAF};
use super::record::{self, MAX_META_BYTES, Prepared, RecordV1};
use super::segments::{file_name, io_error, number_of, salt};
use super::walk::{Found, read_record};
use crate::disk::{Disk, DiskFile};
use crate::store::StoreError;

const KIND: &str = "evidence";
/// Written at once while a segment is copied.
const CHUNK_BYTES: usize = 1 << 20;
/// Read at once, while record after record is looked at: so little that it is still in the processor's cache then.
const WINDOW_BYTES: usize = 256 << 10;

#[derive(Clone)]
struct File {
    header: FileHeader,
    file: Arc<dyn DiskFile>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    file: u64,
    offset: u64,
    /// The last journal segment that stands here wholly.
    settled: u64,
}

pub struct EvidenceFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    max_bytes: u64,
    files: RwLock<BTreeMap<u64, File>>,
    /// Where the next copy goes; held by whoever copies.
    end: Mutex<End>,
    /// The same as in `end`, for those who must not wait for a copy.
    settled: AtomicU64,
    /// Where the newest copy since the start begins.
    last_copy: Mutex<Option<Begun>>,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    segment: u64,
    file: u64,
    offset: u64,
}

impl EvidenceFiles {
    /// Opens the files and cuts what an unfinished copy left at the end of the last one.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, max_bytes: u64) -> Result<Self, StoreError> {
        let failed = io_error("opening the evidence");
        disk.create_dir_all(dir).map_err(&failed)?;
        let mut files = BTreeMap::new();
        for name in disk.list(dir).map_err(&failed)? {
            let path = dir.join(&name);
            match number_of(&name, KIND) {
                Some(number) => drop(files.insert(number, open_file(disk.as_ref(), &path, number)?)),
                None if name.ends_with(".new") => disk.remove(&path).map_err(&failed)?,
                None => {}
            }
        }
        let last = files.last_key_value().map_or(0, |(number, _)| *number);
        let settled = files.last_key_value().map_or(0, |(_, file)| file.header.first);
        let end = End { file: last, offset: FILE_HEADER_BYTES as u64, settled };
        let (files, end) = (RwLock::new(files), Mutex::new(end));
        let (last_copy, settled_now) = (Mutex::default(), AtomicU64::new(settled));
        let evidence = Self { disk, dir: dir.to_owned(), max_bytes, files, end, settled: settled_now, last_copy };
        if last > 0 {
            evidence.cut_tail(last)?;
        }
        Ok(evidence)
    }

    fn cut_tail(&self, last: u64) -> Result<(), StoreError> {
        let Some(file) = self.file(last) else { return Ok(()) };
        let failed = io_error("opening the evidence");
        let mut at = FILE_HEADER_BYTES as u64;
        let mut end = End { file: last, offset: at, settled: file.header.first };
        let mut last_copy = at;
        let len = file.file.len().map_err(&failed)?;
        let mut window = Window::default();
        while let Some((frame, bytes)) = window.frame_at(file.file.as_ref(), at, len)? {
            at += frame.whole();
            if let Some(settled) = mark_in(&frame, bytes) {
                last_copy = end.offset;
                end = End { file: last, offset: at, settled };
            }
        }
        if let Some(found) = later_mark(&file, at, len)? {
            return Err(StoreError::Damaged(format!(
                "{}, offset {at}: a record does not read, though the file goes on validly to offset {found}",
                self.path(last).display()
            )));
        }
        if len > end.offset {
            tracing::info!(file = %self.path(last).display(), from = end.offset, to = len, "cut an unfinished copy");
            file.file.set_len(end.offset).map_err(&failed)?;
        }
        // A sync that failed before has left the pages clean, and the disk without them; the journal segment may be freed
        // for it. Only the last copy can be such, so it is written once more.
        let mut buffer = vec![0; CHUNK_BYTES];
        while last_copy < end.offset {
            let step = usize::try_from(end.offset - last_copy).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            file.file.read_at(last_copy, &mut buffer[..step]).map_err(&failed)?;
            file.file.write_at(last_copy, &buffer[..step]).map_err(&failed)?;
            last_copy += step as u64;
        }
        file.file.sync_data().map_err(&failed)?;
        self.disk.sync_dir(&self.dir).map_err(&failed)?;
        *self.end() = end;
        self.settled.store(end.settled, Ordering::Release);
        Ok(())
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, number: u64) -> Option<File> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number, KIND))
    }

    pub fn open_file(&self, number: u64) -> Option<Arc<dyn DiskFile>> {
        Some(self.file(number)?.file)
    }

    /// Every file with its number, and how many of its bytes are durable and whole.
    pub fn ends(&self) -> Result<Vec<(u64, PathBuf, u64)>, StoreError> {
        let end = *self.end();
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let mut ends = Vec::with_capacity(files.len());
        for (number, file) in files.range(..=end.file) {
            let len = match *number == end.file {
                true => end.offset,
                false => file.file.len().map_err(io_error("reading the evidence"))?,
            };
            ends.push((*number, self.path(*number), len));
        }
        Ok(ends)
    }

    /// The last journal segment that stands here wholly; 0 if none does.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Copies one journal segment's records (frames with their bodies cut off), and makes them durable.
    pub fn append(
        &self,
        segment: u64,
        records: impl Iterator<Item = Result<(Vec<u8>, u64), StoreError>>,
    ) -> Result<(), StoreError> {
        let failed = io_error("writing the evidence");
        let mut end = self.end();
        if segment <= end.settled {
            return Ok(());
        }
        if end.file == 0 || end.offset >= self.max_bytes {
            *end = self.begin_file(&end)?;
        }
        let file = self.file(end.file).ok_or_else(|| StoreError::Damaged("the evidence file is gone".to_owned()))?;
        let mut at = end.offset;
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        for record in records {
            let (meta, leaf) = record?;
            buffer.extend_from_slice(&FrameHeader::encode(&meta, 0, leaf));
            buffer.extend_from_slice(&meta);
            if buffer.len() >= CHUNK_BYTES {
                file.file.write_at(at, &buffer).map_err(&failed)?;
                at += buffer.len() as u64;
                buffer.clear();
            }
        }
        let mark = Prepared::new(RecordV1::Settled(segment), vec![])?;
        mark.write_frame(NO_LEAF, &mut buffer);
        file.file.write_at(at, &buffer).map_err(&failed)?;
        docaxis_failpoints::failpoint!("broker.evidence.written");
        file.file.sync_data().map_err(io_error("syncing the evidence"))?;
        docaxis_failpoints::failpoint!("broker.evidence.synced");
        *self.last_copy.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Begun { segment, file: end.file, offset: end.offset });
        *end = End { file: end.file, offset: at + buffer.len() as u64, settled: segment };
        self.settled.store(segment, Ordering::Release);
        Ok(())
    }

    fn begin_file(&self, end: &End) -> Result<End, StoreError> {
        let failed = io_error("beginning an evidence file");
        let number = end.file + 1;
        let header = FileHeader { number, salt: salt()?, first: end.settled };
        let path = self.path(number);
        let temporary = path.with_extension("new");
        if self.disk.exists(&temporary).map_err(&failed)? {
            self.disk.remove(&temporary).map_err(&failed)?;
        }
        let file = self.disk.create(&temporary).map_err(&failed)?;
        file.write_at(0, &header.encode(FileKind::Evidence)).map_err(&failed)?;
        file.sync_data().map_err(&failed)?;
        docaxis_failpoints::failpoint!("broker.evidence.file-synced");
        self.disk.rename(&temporary, &path).map_err(&failed)?;
        self.disk.sync_dir(&self.dir).map_err(&failed)?;
        docaxis_failpoints::failpoint!("broker.evidence.file-begun");
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, File { header, file });
        Ok(End { file: number, offset: FILE_HEADER_BYTES as u64, settled: end.settled })
    }

    /// Every record in order, not decoded.
    pub fn walk(&self, mut each: impl FnMut(&Copy<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let numbers: Vec<u64> = self.files.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        for number in numbers {
            self.walk_file(number, FILE_HEADER_BYTES as u64, &mut each)?;
        }
        Ok(())
    }

    /// The copies of one journal segment's records, in order and not decoded.
    pub fn walk_segment(
        &self,
        segment: u64,
        mut each: impl FnMut(&Copy<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let last = *self.last_copy.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, from, mut settled) = match last {
            // Copied since the start: no need to read what stands before.
            Some(last) if last.segment == segment => (last.file, last.offset, segment - 1),
            _ => {
                let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
                let Some((number, file)) = files.iter().rev().find(|(_, file)| file.header.first < segment) else {
                    return Ok(());
                };
                (*number, FILE_HEADER_BYTES as u64, file.header.first)
            }
        };
        self.walk_file(number, from, &mut |copy| {
            if record::tag_of(copy.meta) == record::SETTLED_TAG {
                if let RecordV1::Settled(mark) = copy.read()?.prepared.record {
                    settled = mark;
                }
                return Ok(());
            }
            if settled + 1 == segment { each(copy) } else { Ok(()) }
        })
    }

    fn walk_file(
        &self,
        number: u64,
        from: u64,
        each: &mut dyn FnMut(&Copy<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(file) = self.file(number) else { return Ok(()) };
        let end = *self.end();
        let len = match number == end.file {
            true => end.offset,
            false => file.file.len().map_err(io_error("reading the evidence"))?,
        };
        let mut window = Window::default();
        let mut at = from;
        while at < len {
            let Some((frame, bytes)) = window.frame_at(file.file.as_ref(), at, len)? else {
                let path = self.path(number);
                return Err(StoreError::Damaged(format!("{}, offset {at}: a record does not read", path.display())));
            };
            let place = Location { area: Area::Evidence, segment: number, offset: at };
            each(&Copy { frame, meta: &bytes[FRAME_HEADER_BYTES..], bytes, at: place })?;
            at += frame.whole();
        }
        Ok(())
    }
}

/// A record in evidence whose checksum holds, not decoded.
pub struct Copy<'a> {
    pub frame: FrameHeader,
    pub meta: &'a [u8],
    bytes: &'a [u8],
    pub at: Location,
}

impl Copy<'_> {
    pub fn read(&self) -> Result<Found, StoreError> {
        read_record(&self.frame, self.bytes, self.at)
    }
}

/// A piece of a file in memory, for reading record after record without a call for each.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The valid frame at `at` of a file that ends at `len`: header and meta.
    fn frame_at(&mut self, file: &dyn DiskFile, at: u64, len: u64) -> Result<Option<(FrameHeader, &[u8])>, StoreError> {
        if !self.cover(file, at, FRAME_HEADER_BYTES, len)? {
            return Ok(None);
        }
        let Some(frame) = FrameHeader::decode(self.from(at)) else { return Ok(None) };
        let whole = FRAME_HEADER_BYTES + frame.meta as usize;
        if frame.meta as usize > MAX_META_BYTES || !self.cover(file, at, whole, len)? {
            return Ok(None);
        }
        let bytes = &self.from(at)[..whole];
        Ok(frame.holds(bytes, &bytes[FRAME_HEADER_BYTES..]).then_some((frame, bytes)))
    }

    fn from(&self, at: u64) -> &[u8] {
        usize::try_from(at - self.start).ok().and_then(|skip| self.bytes.get(skip..)).unwrap_or_default()
    }

    /// Whether `wanted` bytes from `at` on are in memory, after they were read if need be.
    fn cover(&mut self, file: &dyn DiskFile, at: u64, wanted: usize, len: u64) -> Result<bool, StoreError> {
        if at >= self.start && self.from(at).len() >= wanted {
            return Ok(true);
        }
        let left = usize::try_from(len.saturating_sub(at)).unwrap_or(usize::MAX);
        if left < wanted {
            return Ok(false);
        }
        self.start = at;
        self.bytes.resize(wanted.max(WINDOW_BYTES).min(left), 0);
        let read = file.read_at(at, &mut self.bytes).map_err(io_error("reading the evidence"))?;
        self.bytes.truncate(read);
        Ok(read >= wanted)
    }
}

/// The valid frame at `at`: header and meta. Nothing is allocated for a length that the file does not have.
pub fn frame_at(file: &dyn DiskFile, at: u64) -> Result<Option<(FrameHeader, Vec<u8>)>, StoreError> {
    let failed = io_error("reading a record");
    let mut head = [0; FRAME_HEADER_BYTES];
    let read = file.read_at(at, &mut head).map_err(&failed)?;
    let Some(frame) = FrameHeader::decode(&head[..read]) else { return Ok(None) };
    if frame.meta as usize > MAX_META_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; FRAME_HEADER_BYTES + frame.meta as usize];
    let read = file.read_at(at, &mut bytes).map_err(&failed)?;
    let whole = read == bytes.len() && frame.holds(&bytes, &bytes[FRAME_HEADER_BYTES..]);
    Ok(whole.then_some((frame, bytes)))
}

fn mark_in(frame: &FrameHeader, bytes: &[u8]) -> Option<u64> {
    let meta = &bytes[FRAME_HEADER_BYTES..];
    if record::tag_of(meta) != record::SETTLED_TAG {
        return None;
    }
    match Prepared::read(frame, meta).ok()?.record {
        RecordV1::Settled(segment) => Some(segment),
        _ => None,
    }
}

/// Whether a mark stands anywhere behind `from`: then what does not read before it is damage.
fn later_mark(file: &File, from: u64, len: u64) -> Result<Option<u64>, StoreError> {
    let failed = io_error("opening the evidence");
    let mark = Prepared::new(RecordV1::Settled(0), vec![])?;
    let pattern = &FrameHeader::encode(&mark.meta, 0, NO_LEAF)[..20];
    let mut at = from;
    let mut window = vec![0; CHUNK_BYTES];
    while at < len {
        let read = file.file.read_at(at, &mut window).map_err(&failed)?;
        for (offset, bytes) in (0u64..).zip(window[..read].windows(pattern.len())) {
            if bytes == pattern && frame_at(file.file.as_ref(), at + offset)?.is_some() {
                return Ok(Some(at + offset));
            }
        }
        if read < window.len() {
            break;
        }
        at += (read - pattern.len()) as u64;
    }
    Ok(None)
}

fn open_file(disk: &dyn Disk, path: &Path, number: u64) -> Result<File, StoreError> {
    let failed = io_error("opening the evidence");
    let file = disk.open(path).map_err(&failed)?;
    let mut bytes = [0; FILE_HEADER_BYTES];
    let read = file.read_at(0, &mut bytes).map_err(&failed)?;
    let header = FileHeader::decode(FileKind::Evidence, &bytes[..read])
        .map_err(|what| StoreError::Damaged(format!("{}, offset 0: {what}", path.display())))?;
    if header.number != number {
        let what = format!("{}: its header says file {}", path.display(), header.number);
        return Err(StoreError::Damaged(what));
    }
    Ok(File { header, file })
}
