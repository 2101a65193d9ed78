//! The hub's side of a task stream, as far as a peer sees it.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use cortex_peer::{
    browser::BrowserOptions,
    sandbox::Sandbox,
    task::{Bounds, Tasks, TasksOptions},
};
use cortex_runtime::{
    clock,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    id::{SessionId, TaskId},
    key::{Domain, SecretKey},
    limits, policy,
    schema::{
        FromTask, OutputAck, OutputStream, SandboxMode, SandboxPolicy, ShellTask, Signed, StreamOpen, TaskCancel, TaskInput, TaskLimits,
        TaskRejected, TaskRequest, TaskResponse, TaskResume, ToTask, from_task::Frame, stream_open::Open, task_request::Kind, to_task,
    },
};
use tempfile::TempDir;
use tokio::{
    io::{DuplexStream, ReadHalf, WriteHalf},
    task::JoinHandle,
    time::timeout,
};

/// More than any test needs, less than anybody waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Names the helper's program where it is not where it was built.
pub const HELPER: &str = "CORTEX_TEST_HELPER";

/// The program that builds sandboxes.
pub fn helper() -> std::path::PathBuf {
    std::env::var_os(HELPER).unwrap_or_else(|| env!("CARGO_BIN_EXE_cortex-peer").into()).into()
}

/// A hub with one node, whose state and workspaces are in a temporary folder.
pub struct Hub {
    pub dir: TempDir,
    pub node: SecretKey,
    pub policy: SandboxPolicy,
    pub ceiling: SandboxPolicy,
    pub bounds: Bounds,
    pub browser: Option<BrowserOptions>,
    /// What sandboxed tasks may read besides the system.
    pub readable: Vec<std::path::PathBuf>,
    pub nonce: [u8; 32],
    pub session: SessionId,
    root: SecretKey,
    task_key: SecretKey,
    sequence: AtomicU64,
}

impl Hub {
    pub fn new() -> Self {
        Self::with_dir(tempfile::tempdir().unwrap())
    }

    pub fn with_dir(dir: TempDir) -> Self {
        let key = || SecretKey::from_seed(clock::random());
        Self {
            dir,
            node: key(),
            policy: SandboxPolicy { mode: SandboxMode::Permissive.into(), task_slots: 64, sequence: 1, ..SandboxPolicy::default() },
            ceiling: SandboxPolicy::default(),
            bounds: Bounds::default(),
            browser: None,
            readable: Vec::new(),
            nonce: clock::random(),
            session: SessionId::new(clock::now_ms(), clock::random()),
            root: key(),
            task_key: key(),
            sequence: AtomicU64::new(0),
        }
    }

    /// The node's tasks, bound to this hub. Again after a restart.
    pub fn tasks(&self) -> Tasks {
        let tasks = self.tasks_without_policy();
        tasks.set_policy(&self.signed_policy()).unwrap();
        tasks
    }

    /// The same, before the hub has sent its policy.
    pub fn tasks_without_policy(&self) -> Tasks {
        let tasks = Tasks::open(TasksOptions {
            state_dir: self.dir.path().join("state"),
            workspace_dir: self.dir.path().join("work"),
            node: self.node.clone(),
            ceiling: self.ceiling.clone(),
            shell: "/bin/sh".into(),
            environment: Vec::new(),
            bounds: self.bounds,
            browser: self.browser.clone(),
            sandbox: Sandbox::new(helper(), self.readable.clone()),
            policy_sequence: 0,
        })
        .unwrap();
        tasks.bind(self.root.public().into(), self.nonce, self.task_key.public());
        tasks.connected(true);
        tasks
    }

    pub fn signed_policy(&self) -> Signed {
        self.task_key.seal(Domain::Policy, &self.policy)
    }

    pub fn workspace(&self) -> std::path::PathBuf {
        self.dir.path().join("work").join(self.session.to_string())
    }

    /// A request as it should be; tests bend it.
    pub fn request(&self, shell: ShellTask) -> TaskRequest {
        TaskRequest {
            hub_root: self.root.public().to_bytes(),
            node_key: self.node.public().to_bytes(),
            session_id: self.session.to_string(),
            boot_nonce: Bytes::copy_from_slice(&self.nonce),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            task_id: Bytes::copy_from_slice(TaskId::new(clock::now_ms(), clock::random()).as_bytes()),
            fence: 1,
            issued_at_ms: clock::now_ms(),
            start_deadline_ms: clock::now_ms() + 60_000,
            policy_hash: Bytes::copy_from_slice(&policy::hash(&policy::encode(&self.policy))),
            mode: SandboxMode::Permissive.into(),
            kind: Some(Kind::Shell(shell)),
            ..TaskRequest::default()
        }
    }

    pub fn sign(&self, request: &TaskRequest) -> Signed {
        self.task_key.seal(Domain::Task, request)
    }

    /// Sends a request.
    pub async fn start(&self, tasks: &Tasks, request: &TaskRequest) -> Talk {
        self.open(tasks, Open::Start(self.sign(request))).await
    }

    /// Sends a script.
    pub async fn script(&self, tasks: &Tasks, text: &str) -> Talk {
        self.start(tasks, &self.request(script(text))).await
    }

    /// Sends a script that is to be sandboxed.
    pub async fn strict(&self, tasks: &Tasks, text: &str) -> Talk {
        self.start(tasks, &TaskRequest { mode: SandboxMode::Strict.into(), ..self.request(script(text)) }).await
    }

    /// Sends a script with limits.
    pub async fn limited(&self, tasks: &Tasks, text: &str, limits: TaskLimits) -> Talk {
        self.start(tasks, &TaskRequest { limits: Some(limits), ..self.request(script(text)) }).await
    }

    /// Goes on with a task.
    pub async fn resume(&self, tasks: &Tasks, task_id: &Bytes, stdout_offset: u64, stderr_offset: u64) -> Talk {
        let resume = TaskResume { task_id: task_id.clone(), stdout_offset, stderr_offset, stdin_offset: 0 };
        let mut talk = self.open(tasks, Open::Resume(resume)).await;
        (talk.next_stdout, talk.next_stderr) = (stdout_offset, stderr_offset);
        talk
    }

    pub async fn open(&self, tasks: &Tasks, open: Open) -> Talk {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(theirs);
        let tasks = tasks.clone();
        let serving = tokio::spawn(async move { tasks.serve(read, write).await });
        let (read, write) = tokio::io::split(ours);
        let mut writer = FrameWriter::new(write);
        writer.send(&StreamOpen { open: Some(open), ..StreamOpen::default() }).await.unwrap();
        Talk {
            reader: FrameReader::new(read, limits::TASK_FRAME_BYTES),
            writer,
            serving,
            node: self.node.public(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            next_stdout: 0,
            next_stderr: 0,
            gaps: 0,
            keep: true,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A script for the default shell.
pub fn script(text: &str) -> ShellTask {
    ShellTask { script: text.into(), ..ShellTask::default() }
}

/// A command of words.
pub fn argv(words: &[&str]) -> ShellTask {
    ShellTask { argv: words.iter().map(|word| (*word).to_owned()).collect(), ..ShellTask::default() }
}

/// One stream of one task.
pub struct Talk {
    pub reader: FrameReader<ReadHalf<DuplexStream>>,
    pub writer: FrameWriter<WriteHalf<DuplexStream>>,
    pub serving: JoinHandle<Result<(), StreamError>>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub next_stdout: u64,
    pub next_stderr: u64,
    /// Gaps in the offsets.
    pub gaps: usize,
    /// Whether output is kept, or counted only.
    pub keep: bool,
    node: cortex_wire::key::PublicKey,
}

/// How a task ended, as the hub sees it.
#[derive(Debug)]
pub struct Over {
    pub response: TaskResponse,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Over {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Talk {
    /// The next frame, with output taken in and checked for order.
    pub async fn next(&mut self) -> Option<Frame> {
        let frame: Option<FromTask> = timeout(PATIENCE, self.reader.next()).await.expect("a frame in time").unwrap();
        let frame = frame.map(|frame| frame.frame.expect("a known frame"));
        if let Some(Frame::Output(output)) = &frame {
            let (kept, next) = match output.stream() {
                OutputStream::Stdout => (&mut self.stdout, &mut self.next_stdout),
                OutputStream::Stderr => (&mut self.stderr, &mut self.next_stderr),
                OutputStream::Unspecified => panic!("a stream without a name"),
            };
            assert!(output.offset >= *next, "output came twice: {} after {next}", output.offset);
            assert!(!output.data.is_empty() && output.data.len() <= limits::OUTPUT_CHUNK_BYTES);
            self.gaps += usize::from(output.offset > *next);
            *next = output.offset + output.data.len() as u64;
            if self.keep {
                kept.extend_from_slice(&output.data);
            }
        }
        frame
    }

    pub async fn tell(&mut self, frame: to_task::Frame) {
        self.writer.send(&ToTask { frame: Some(frame) }).await.unwrap();
    }

    pub async fn acknowledge(&mut self) {
        let ack = OutputAck { stdout_offset: self.next_stdout, stderr_offset: self.next_stderr };
        self.tell(to_task::Frame::Ack(ack)).await;
    }

    pub async fn cancel(&mut self, reason: &str) {
        self.tell(to_task::Frame::Cancel(TaskCancel { reason: reason.into() })).await;
    }

    pub async fn input(&mut self, offset: u64, data: &[u8], end: bool) {
        self.tell(to_task::Frame::Input(TaskInput { offset, data: Bytes::copy_from_slice(data), end })).await;
    }

    /// Reads on until this much of stdout is there.
    pub async fn until_stdout(&mut self, bytes: u64) {
        while self.next_stdout < bytes {
            match self.next().await.expect("more output") {
                Frame::Rejected(rejected) => panic!("{rejected:?}"),
                Frame::Result(_) => panic!("the result came before {bytes} bytes"),
                _ => {}
            }
        }
    }

    /// Reads until a line of stdout begins with `start`, and returns the rest of it.
    pub async fn line(&mut self, start: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.stdout).into_owned();
            if let Some(rest) = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).find_map(|line| line.strip_prefix(start)) {
                return rest.trim().to_owned();
            }
            self.until_stdout(self.next_stdout + 1).await;
        }
    }

    /// Reads and acknowledges everything up to the result, checks its signature, and says that it is stored.
    pub async fn finish(mut self) -> Over {
        let result = self.result().await;
        self.tell(to_task::Frame::ResultStored(true)).await;
        timeout(PATIENCE, self.serving).await.expect("the stream ends").unwrap().unwrap();
        Over { response: result, stdout: self.stdout, stderr: self.stderr }
    }

    /// Reads and acknowledges everything up to the result.
    pub async fn result(&mut self) -> TaskResponse {
        let mut acknowledged = 0;
        loop {
            match self.next().await.expect("a result before the end of the stream") {
                Frame::Result(signed) => break self.node.open(Domain::Result, &signed).unwrap(),
                Frame::Rejected(rejected) => panic!("{rejected:?}"),
                Frame::Output(_) if self.next_stdout + self.next_stderr > acknowledged + (1 << 20) => {
                    acknowledged = self.next_stdout + self.next_stderr;
                    self.acknowledge().await;
                }
                _ => {}
            }
        }
    }

    /// The refusal that has to come.
    pub async fn rejected(mut self) -> TaskRejected {
        match self.next().await {
            Some(Frame::Rejected(rejected)) => {
                timeout(PATIENCE, self.serving).await.expect("the stream ends").unwrap().unwrap();
                rejected
            }
            other => panic!("{other:?} instead of a refusal"),
        }
    }
}
