//! Pages for tests, served on loopback.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A server of pages; which of them it was asked for is remembered.
pub struct Site {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Site {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = log.clone();
                tokio::spawn(async move { _ = serve(stream, address, log).await });
            }
        });
        Self { address, asked, server }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// The same server under another name, which is another site.
    pub fn other(&self, path: &str) -> String {
        format!("http://localhost:{}/{path}", self.address.port())
    }

    pub fn was_asked(&self, path: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.starts_with(path))
    }
}

async fn serve(mut stream: TcpStream, address: SocketAddr, log: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        head.clear();
        let path = text.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
        log.lock().unwrap().push(path.clone());
        let header = |name: &str| {
            text.lines()
                .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()))
        };
        if let Some(key) = header("sec-websocket-key") {
            return echo(stream, &key).await;
        }
        if let Some(length) = header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            log.lock().unwrap().push(format!("body {}", String::from_utf8_lossy(&body)));
        }
        let (status, extra, body) = page(&path, address);
        if path.starts_with("never") {
            std::future::pending::<()>().await;
        }
        let kind = if extra.to_ascii_lowercase().contains("content-type") { "" } else { "Content-Type: text/html; charset=utf-8\r\n" };
        let head = format!("HTTP/1.1 {status}\r\n{kind}{extra}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
    }
}

/// A WebSocket that sends back the first message.
async fn echo(mut stream: TcpStream, key: &str) -> std::io::Result<()> {
    let accept = data_encoding::BASE64.encode(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()));
    let head =
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let _ = stream.read_u8().await?;
    let length = usize::from(stream.read_u8().await? & 0x7f);
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    body.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
    stream.write_all(&[&[0x81, length as u8][..], &body].concat()).await?;
    std::future::pending().await
}

/// For the handshake of WebSockets alone.
fn sha1(data: &[u8]) -> [u8; 20] {
    let mut h: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = data.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut w = [0u32; 80];
        for (i, four) in block.chunks(4).enumerate() {
            w[i] = u32::from_be_bytes(four.try_into().unwrap());
        }
        for i in 16..80 {
            w[i] = (w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = h;
        for (i, word) in w.iter().enumerate() {
            let (f, k) = match i {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in h.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut out = [0; 20];
    out.chunks_mut(4).zip(h).for_each(|(four, word)| four.copy_from_slice(&word.to_be_bytes()));
    out
}

fn page(path: &str, address: SocketAddr) -> (&'static str, String, String) {
    let port = address.port();
    let ok = |body: &str| ("200 OK", String::new(), format!("<!doctype html><title>{path}</title>{body}"));
    let (name, query) = path.split_once('?').unwrap_or((path, ""));
    match name {
        "form" => ok(FORM),
        "second" => ok("<h1>Second page</h1><a href=form>Back to the form</a>"),
        "spa" => ok(SPA),
        "frames" => ok(&format!(
            "<h1>Outer</h1><iframe id=same src=inner?same title=same></iframe><iframe style='margin:20px' src='http://localhost:{port}/inner?other' title=other></iframe>"
        )),
        "inner" => {
            ok(&format!("<button onclick=\"this.textContent='pressed {query}'\">Inner {query}</button><input aria-label='field {query}'>"))
        }
        "shadow" => ok(SHADOW),
        "dialogs" => ok(
            "<button onclick=\"alert('hello');document.title='after alert'\">alert</button><button onclick=\"document.title='said '+confirm('sure?')\">confirm</button>\
             <button onclick=\"document.title='got '+prompt('name?','x')\">prompt</button>",
        ),
        "evil" => (
            "200 OK",
            format!(
                "Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"{}\"\r\n",
                query.replace("%2F", "/")
            ),
            "evil bytes".into(),
        ),
        "downloads" => ok(
            "<a href='evil?../../../.bashrc'>hidden</a><a href='evil?..%2F..%2Fetc%2Fpasswd'>passwd</a><a href='evil?report.txt'>report</a>",
        ),
        "loop" => ok("<button onclick='while(true){}'>hang</button><p>quiet"),
        "endless" => ("302 Found", "Location: /endless\r\n".into(), String::new()),
        "huge" => ok(&huge(1_500)),
        "popup" => ok("<button onclick=\"window.open('second')\">open</button><a target=_blank href=second>blank</a>"),
        "upload" => ok(
            "<input type=file aria-label=file onchange=\"this.files[0].text().then(t=>document.title='file '+this.files[0].name+' '+t)\">\
             <button onclick=\"document.querySelector('input').click()\">Choose</button>",
        ),
        "leaves" => ok("<button onmousedown=\"location='second'\">Go away</button>"),
        "covered" => ok(
            "<button style='position:absolute;left:0;top:0'>under</button><div role=dialog aria-label=banner style='position:absolute;left:0;top:0;width:300px;height:300px;background:#fff'>over</div>",
        ),
        "drag" => ok(
            "<div id=a draggable=true ondragstart=\"event.dataTransfer.setData('text','cargo')\" style='width:60px;height:60px;background:red'>a</div>\
             <div id=b ondragover='event.preventDefault()' ondrop=\"document.title='dropped '+event.dataTransfer.getData('text')\" style='margin-top:40px;width:90px;height:90px;background:blue'>b</div>",
        ),
        "requests" => ok(&format!(
            "<script>fetch('data.json').then(r=>r.json()).then(d=>console.log('data',d.n));console.error('a mistake');setTimeout(()=>{{throw new Error('thrown')}},0);\
             let w=new WebSocket('ws://127.0.0.1:{port}/ws');w.onopen=()=>w.send('hi');w.onmessage=e=>document.title='ws '+e.data</script>"
        )),
        "data.json" => ("200 OK", "Content-Type: application/json\r\nSet-Cookie: secret=1\r\n".into(), "{\"n\":42}".into()),
        "reach" => ok(&format!(
            "<pre id=o></pre><script>let o=document.getElementById('o'),n=t=>o.textContent+=t+' ';\
             fetch('http://127.0.0.1:{port}/target?fetch').then(()=>n('fetch'),()=>n('no-fetch'));\
             let w=new WebSocket('ws://127.0.0.1:{port}/target?ws');w.onopen=()=>n('ws');w.onerror=()=>n('no-ws');\
             let k=new Worker(URL.createObjectURL(new Blob([\"fetch('http://127.0.0.1:{port}/target?worker').then(()=>postMessage('worker'),()=>postMessage('no-worker'))\"])));k.onmessage=e=>n(e.data)</script>"
        )),
        "redirect" => ("302 Found", format!("Location: {}\r\n", query), String::new()),
        "target" => ("200 OK", "Access-Control-Allow-Origin: *\r\n".into(), "reached".into()),
        "crash" => ok("<p>still here"),
        "media" => ok(
            "<p id=o></p><script>o.textContent=[innerWidth,matchMedia('(prefers-color-scheme: dark)').matches,navigator.language,Intl.DateTimeFormat().resolvedOptions().timeZone,navigator.userAgent].join(' ')</script>",
        ),
        "clobber" => ok(CLOBBER),
        "deep" => ok(
            "<button>Shallow</button><script>let e=document.body;for(let i=0;i<4000;i++)e=e.appendChild(document.createElement('b'));e.textContent='abyss'</script>",
        ),
        "alerts" => ok("<button onclick='while(true)alert(1)'>nag</button>"),
        "restless" => ok("<p>again</p><script>setTimeout(()=>location.reload(),5)</script>"),
        "crowd" => ok("<button onclick=\"for(let i=0;i<40;i++)window.open('second?'+i)\">open many</button>"),
        "big" => (
            "200 OK",
            "Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=big\r\n".into(),
            "x".repeat(query.parse().unwrap_or(0)),
        ),
        "names" => ok(
            "<a id=a>save</a><script>function save(name){a.href=URL.createObjectURL(new Blob(['evil bytes']));a.download=name;a.click()}\
             function saveMany(from,to){for(let n=from;n<to;n++){if((n-from)%10==0){const f=document.createElement('iframe');document.body.append(f);window.many=f.contentDocument}\
             const l=many.createElement('a');many.body.append(l);l.href=URL.createObjectURL(new Blob(['x']));l.download='n'+n;l.click()}}</script>",
        ),
        "words" => ok(WORDS),
        "later" => ok(LATER),
        "chatty" => ok(
            "<h1>Chatty</h1><script>let said=0;function again(){fetch('data.json?'+said).then(()=>{if(++said<5)setTimeout(again,200)})}again()</script>",
        ),
        "long" => ok_text("x".repeat(query.parse().unwrap_or(0))),
        "ways" => ok(WAYS),
        "worker.js" => script("onmessage=e=>fetch(e.data,{mode:'no-cors'}).then(()=>postMessage(1),()=>postMessage(0))"),
        "shared.js" => script(
            "onconnect=e=>{let p=e.ports[0];p.onmessage=m=>fetch(m.data,{mode:'no-cors'}).then(()=>p.postMessage(1),()=>p.postMessage(0))}",
        ),
        "service.js" => script(
            "onactivate=e=>e.waitUntil(clients.claim());onmessage=e=>fetch(e.data,{mode:'no-cors'}).then(()=>e.source.postMessage(1),()=>e.source.postMessage(0))",
        ),
        "never" | "ws" => ok(""),
        _ => ("404 Not Found", String::new(), "<h1>nothing here</h1>".into()),
    }
}

fn ok_text(body: String) -> (&'static str, String, String) {
    ("200 OK", "Content-Type: text/plain\r\n".into(), body)
}

fn script(body: &str) -> (&'static str, String, String) {
    ("200 OK", "Content-Type: text/javascript\r\n".into(), body.into())
}

const WORDS: &str = "<script>let log=[];</script><div id=pad style='width:200px;height:80px;background:#eee' oncontextmenu=\"event.preventDefault();log.push('menu')\" \
onmousedown=\"log.push('down'+event.button+(event.shiftKey?'shift,':'')+(event.altKey?'alt':''))\"></div>\
<form onsubmit=\"event.preventDefault();log.push('sent')\"><input id=line aria-label=Line></form><input id=box type=checkbox checked>\
<select id=many multiple><option value=a>Apple</option><option value=b>Berry</option><option value=c>Cherry</option></select>\
<div id=pane style='width:200px;height:60px;overflow:auto'><div style='width:2000px;height:20px'>wide</div></div><input id=files type=file multiple>";

/// One thing comes and another goes, a second after the rest.
const LATER: &str = "<p id=old>leaving</p><script>setTimeout(()=>{old.remove();document.body.insertAdjacentHTML('beforeend','<p id=new>arrived</p>');location.hash='moved'},800)</script>\
<script src='worker.js'></script>";

/// Everything with which a page can connect to somebody.
const WAYS: &str = "<script>\
const t=p=>Promise.race([p,new Promise(d=>setTimeout(()=>d(0),3000))]),by=e=>new Promise(d=>{e.onload=()=>d(1);e.onerror=()=>d(0)});\
const put=(n,f)=>{const e=document.createElement(n);f(e);document.body.append(e);return by(e)};\
const told=(w,m)=>new Promise(d=>{w.onmessage=e=>d(e.data);m()});\
async function ways(to,stun){const u=n=>'http://'+to+'/target?'+n;navigator.sendBeacon(u('beacon'),'x');\
const socket=new WebSocket('ws://'+to+'/target?socket'),events=new EventSource(u('events'));\
await navigator.serviceWorker.register('service.js');await navigator.serviceWorker.ready;\
const work=new Worker('worker.js'),shared=new SharedWorker('shared.js').port;\
const rtc=new RTCPeerConnection({iceServers:[{urls:'stun:'+stun}]});rtc.createDataChannel('x');rtc.createOffer().then(o=>rtc.setLocalDescription(o));\
const link=(n,r)=>put('link',e=>{e.rel=r;if(r=='preload')e.as='image';e.href=u(n)});link('prefetch','prefetch');link('preconnect','preconnect');\
await Promise.all([t(fetch(u('fetch'),{mode:'no-cors'}).catch(()=>0)),t(put('img',e=>e.src=u('image'))),t(put('iframe',e=>e.src=u('frame'))),t(put('script',e=>e.src=u('script'))),\
t(link('style','stylesheet')),t(put('video',e=>{e.src=u('video')})),t(told(work,()=>work.postMessage(u('worker')))),t(told(shared,()=>shared.postMessage(u('shared')))),\
t(told(navigator.serviceWorker,()=>navigator.serviceWorker.controller?.postMessage(u('service'))||navigator.serviceWorker.ready.then(r=>r.active.postMessage(u('service'))))),\
t(fetch('redirect?'+u('redirect'),{mode:'no-cors'}).catch(()=>0)),t(new Promise(d=>{socket.onopen=socket.onerror=d})),t(new Promise(d=>{events.onopen=events.onerror=d}))]);\
events.close();rtc.close();return 'tried'}</script>";

const FORM: &str = "<h1>Form</h1><nav><a href=second>Second</a></nav>\
<form onsubmit=\"event.preventDefault();document.getElementById('out').textContent='sent '+[...new FormData(this).entries()].map(e=>e.join('=')).join('&')\">\
<label>Name <input name=name required></label>\
<label for=pw>Password</label><input id=pw type=password name=pw>\
<input type=date name=day aria-label=Day>\
<textarea name=note aria-label=Note>old</textarea>\
<select name=color aria-label=Color><option value=r>Red</option><option value=g>Green</option></select>\
<label><input type=checkbox name=agree> I agree</label>\
<label><input type=radio name=size value=s> Small</label><label><input type=radio name=size value=l> Large</label>\
<button>Send</button><button type=button disabled>Never</button></form>\
<button id=dbl ondblclick=\"this.textContent='twice'\">once</button>\
<button id=hov onmouseover=\"this.textContent='pointed at'\">point</button>\
<input id=keys aria-label=Keys onkeydown=\"document.title='key '+event.key+(event.ctrlKey?' ctrl':'')\">\
<p id=out role=status></p><div style='height:3000px'></div><button id=far onclick=\"document.title='far clicked'\">Far away</button>";

/// Names that hide what forms and documents have themselves.
const CLOBBER: &str = "<form name=body aria-label=Trap><input name=getAttribute aria-label=First><input name=tagName><input name=nodeType>\
<input name=checkVisibility><input name=firstChild><input name=nextSibling><input name=childNodes><input name=parentElement><input name=parentNode>\
<input name=shadowRoot><input name=inert><input name=querySelector><input name=hasAttribute><input name=isConnected><input name=labels><input name=disabled>\
<button type=button id=go onclick=\"window.went='yes'\">Go on</button></form>\
<img name=querySelectorAll><img name=elementFromPoint><img name=createTreeWalker><form name=activeElement></form><form name=documentElement></form><img name=parentNode>";

const SPA: &str = "<div id=app></div><script>function view(){let p=location.hash.slice(1)||'home';document.getElementById('app').innerHTML=`<h1>${p}</h1><a href='#about'>About</a><button onclick='setTimeout(()=>later.textContent=\"arrived late\",300)'>Later</button><p id=later></p>`}\
addEventListener('hashchange',view);view()</script>";

const SHADOW: &str = "<x-open></x-open><x-closed></x-closed><script>\
for(const [n,mode] of [['x-open','open'],['x-closed','closed']])customElements.define(n,class extends HTMLElement{connectedCallback(){\
let r=this.attachShadow({mode});r.innerHTML=`<button>${mode} button</button>`;r.querySelector('button').onclick=()=>document.title=mode+' clicked'}})</script>";

fn huge(rows: usize) -> String {
    let row = |n: usize| {
        format!(
            "<tr><td>Item {n}</td><td><a href='#{n}'>Open {n}</a></td><td><button onclick=\"document.title='deleted {n}'\">Delete {n}</button></td><td><input type=checkbox></td></tr>"
        )
    };
    format!("<h1>Many</h1><table>{}</table>", (0..rows).map(row).collect::<String>())
}
