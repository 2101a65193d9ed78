use proptest::prelude::*;

use super::*;
use crate::{
    record::Task,
    testing::{Site, response, signed},
};
use cortex_wire::schema::TaskResponse;

async fn running() -> (Site, Actor, Task) {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, _) = site.workplace(&ann, 1).await;
    let task = site.running(&ann, session).await;
    (site, ann, task)
}

/// Whether the task says that some of its output was not kept.
async fn finish(site: &Site, task: &Task, mark: Mark) -> bool {
    let word = TaskResponse { stdout_bytes: mark.stdout, stderr_bytes: mark.stderr, ..response(task, 0) };
    site.hub.finish(task.id, task.node, &word, &signed(1, &word)).await.unwrap().truncated
}

/// All that is stored: `None` stands for a byte of a gap.
async fn everything(site: &Site, actor: &Actor, task: TaskId, stream: Stream) -> Vec<Option<u8>> {
    let reader = site.hub.open_output(actor, task).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        match reader.read(stream, bytes.len() as u64, 1000).await.unwrap() {
            Piece::Data(data) => bytes.extend(data.iter().copied().map(Some)),
            Piece::Gap { next } => bytes.resize(next as usize, None),
            Piece::End => return bytes,
        }
    }
}

async fn gaps_are_told(site: &Site, actor: &Actor, task: TaskId, model: &[Option<u8>]) {
    let reader = site.hub.open_output(actor, task).await.unwrap();
    for from in [0, model.len() / 2, model.len()] {
        let next = reader.next_gap(Stream::Stdout, from as u64).await.unwrap();
        let start = model[from..].iter().position(Option::is_none).map(|i| from + i);
        let end = start.map(|start| start + model[start..].iter().take_while(|byte| byte.is_none()).count());
        assert_eq!(next, start.zip(end).map(|(start, end)| start as u64..end as u64));
    }
}

fn folder(site: &Site, task: &Task) -> PathBuf {
    site.path().join("output").join(task.id.to_string())
}

#[tokio::test]
async fn a_quiet_task_costs_no_file() {
    let (site, ann, task) = running().await;
    let mark = site.hub.outputs.append(task.id, Stream::Stdout, 0, vec![b'x'; INLINE_BYTES].into()).await.unwrap();
    site.hub.outputs.sync(task.id).await.unwrap();
    assert!(!finish(&site, &task, mark).await);
    assert!(!site.path().join("output").exists());
    assert_eq!(everything(&site, &ann, task.id, Stream::Stdout).await.len(), INLINE_BYTES);
    assert_eq!(everything(&site, &ann, task.id, Stream::Stderr).await, []);
    let late = site.hub.outputs.append(task.id, Stream::Stdout, mark.stdout, "late".into()).await;
    assert!(matches!(late, Err(OutputError::Sealed)));
    assert!(matches!(site.hub.outputs.sync(task.id).await, Err(OutputError::Sealed)));
    assert!(lock(&site.hub.outputs.live).is_empty());
}

#[tokio::test]
async fn a_long_stream_goes_to_a_file_and_reads_the_same() {
    let (site, ann, task) = running().await;
    let text: Vec<u8> = (0..300_000u32).map(|i| (i / 251) as u8).collect();
    let mut mark = Mark::default();
    for (i, piece) in text.chunks(3_000).enumerate() {
        mark = site.hub.outputs.append(task.id, Stream::Stderr, i as u64 * 3_000, piece.to_vec().into()).await.unwrap();
    }
    let expected: Vec<_> = text.into_iter().map(Some).collect();
    assert_eq!(everything(&site, &ann, task.id, Stream::Stderr).await, expected);
    assert!(folder(&site, &task).join("stderr").exists());
    assert!(!folder(&site, &task).join("stdout").exists());
    assert!(!finish(&site, &task, mark).await);
    assert_eq!(everything(&site, &ann, task.id, Stream::Stderr).await, expected);
    let site = site.restart().await;
    assert_eq!(everything(&site, &ann, task.id, Stream::Stderr).await, expected);
}

#[tokio::test]
async fn after_a_restart_a_stream_goes_on_where_it_was_acknowledged() {
    let (site, ann, task) = running().await;
    let outputs = &site.hub.outputs;
    outputs.append(task.id, Stream::Stdout, 0, vec![b'a'; 10_000].into()).await.unwrap();
    outputs.append(task.id, Stream::Stderr, 0, "short".into()).await.unwrap();
    let synced = outputs.sync(task.id).await.unwrap();
    assert_eq!((synced.stdout, synced.stderr), (10_000, 5));
    outputs.append(task.id, Stream::Stdout, 10_000, vec![b'b'; 10_000].into()).await.unwrap();
    outputs.append(task.id, Stream::Stderr, 5, "er".into()).await.unwrap();
    let site = site.restart().await;
    assert_eq!(site.hub.outputs.lengths(task.id).await.unwrap(), synced);
    // The peer sends again what was not acknowledged.
    site.hub.outputs.append(task.id, Stream::Stdout, 9_000, vec![b'c'; 2_000].into()).await.unwrap();
    let mark = site.hub.outputs.append(task.id, Stream::Stderr, 5, "er".into()).await.unwrap();
    let stdout = everything(&site, &ann, task.id, Stream::Stdout).await;
    assert_eq!(stdout.len(), 11_000);
    assert!(stdout[..10_000].iter().all(|byte| *byte == Some(b'a')) && stdout[10_000..].iter().all(|byte| *byte == Some(b'c')));
    assert!(!finish(&site, &task, mark).await);
    let stderr: Vec<_> = everything(&site, &ann, task.id, Stream::Stderr).await.into_iter().flatten().collect();
    assert_eq!(stderr, b"shorter");
}

#[tokio::test]
async fn a_follower_sees_output_grow_and_end() {
    let (site, ann, task) = running().await;
    let mut marks = site.hub.follow_output(&ann, task.id).await.unwrap();
    assert_eq!(*marks.borrow_and_update(), Mark::default());
    site.hub.outputs.append(task.id, Stream::Stdout, 0, "abc".into()).await.unwrap();
    marks.changed().await.unwrap();
    let mark = *marks.borrow_and_update();
    assert_eq!(mark, Mark { stdout: 3, stderr: 0, finished: false });
    // What is there already is no news.
    site.hub.outputs.append(task.id, Stream::Stdout, 1, "bc".into()).await.unwrap();
    assert!(!marks.has_changed().unwrap());
    assert!(!finish(&site, &task, mark).await);
    marks.changed().await.unwrap();
    assert!(marks.borrow_and_update().finished);
    assert!(marks.changed().await.is_err());
    let late = *site.hub.follow_output(&ann, task.id).await.unwrap().borrow();
    assert_eq!(late, Mark { stdout: 3, stderr: 0, finished: true });
}

#[tokio::test]
async fn files_of_tasks_that_are_gone_are_swept_away() {
    let (site, _, task) = running().await;
    site.hub.outputs.append(task.id, Stream::Stdout, 1, "x".into()).await.unwrap();
    let orphan = site.path().join("output").join(TaskId::new(1, [0; 10]).to_string());
    fs::create_dir(&orphan).unwrap();
    site.hub.sweep().await.unwrap();
    assert!(!orphan.exists());
    assert!(folder(&site, &task).exists());
}

#[tokio::test]
async fn an_unknown_task_takes_no_output() {
    let site = Site::new().await;
    let nobody = TaskId::new(1, [0; 10]);
    assert!(matches!(site.hub.outputs.append(nobody, Stream::Stdout, 0, "x".into()).await, Err(OutputError::Sealed)));
    assert!(lock(&site.hub.outputs.live).is_empty());
    let ann = site.member("ann").await;
    let read = site.hub.read_output(&ann, nobody, Stream::Stdout, 0, 9).await;
    assert_eq!(read.unwrap_err().code(), "not_found");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Pieces that overlap, repeat and leave gaps show as a plain array would.
    #[test]
    fn duplicates_are_dropped_and_gaps_are_kept(
        pieces in proptest::collection::vec((0u64..12_000, 0usize..4_000), 1..8),
        synced: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (site, ann, task) = running().await;
            let mut model: Vec<Option<u8>> = Vec::new();
            let mut mark = Mark::default();
            for (i, (offset, len)) in pieces.into_iter().enumerate() {
                let end = offset as usize + len;
                if end > model.len() && len > 0 {
                    let new = model.len().max(offset as usize);
                    model.resize(new, None);
                    model.resize(end, Some(i as u8));
                }
                mark = site.hub.outputs.append(task.id, Stream::Stdout, offset, vec![i as u8; len].into()).await.unwrap();
                assert_eq!(mark.stdout, model.len() as u64);
            }
            assert_eq!(everything(&site, &ann, task.id, Stream::Stdout).await, model);
            gaps_are_told(&site, &ann, task.id, &model).await;
            let site = if synced {
                site.hub.outputs.sync(task.id).await.unwrap();
                site.restart().await
            } else {
                assert_eq!(finish(&site, &task, mark).await, model.contains(&None));
                site
            };
            assert_eq!(everything(&site, &ann, task.id, Stream::Stdout).await, model);
            gaps_are_told(&site, &ann, task.id, &model).await;
        });
    }
}
