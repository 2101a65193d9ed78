// Runs in a world of its own in every document: pages neither see nor change it. What it answers is data about the page.
(() => {
  if (globalThis.cortex) return;
  const given = new Map(); // number → { at: WeakRef, role, name }
  const numbers = new WeakMap();
  const roots = new WeakSet();
  const closed = new WeakMap(); // host → its closed root, handed in by the peer
  let next = 1, changes = 1;
  const touched = () => { changes++; };
  const observer = new MutationObserver(touched);
  const observe = (root) => {
    if (roots.has(root)) return;
    roots.add(root);
    observer.observe(root, { subtree: true, childList: true, attributes: true, characterData: true });
  };
  observe(document);
  for (const kind of ['input', 'change', 'toggle', 'focusin', 'focusout', 'scrollend']) addEventListener(kind, touched, true);

  const DEEPEST = 1500; // elements in one another: a stack has an end
  // Fields of a form hide what the form itself has, and named elements what the document has; from their prototypes nobody can hide it.
  const forms = HTMLFormElement.prototype, documents = HTMLDocument.prototype;
  const of = (e, key) => (forms.isPrototypeOf(e) ? Reflect.get(forms, key, e) : e === document ? Reflect.get(documents, key, e) : e[key]);
  const call = (e, key, ...more) => of(e, key).call(e, ...more);
  const doc = (key) => of(document, key);
  const attr = (e, name) => call(e, 'getAttribute', name);
  const has = (e, name) => call(e, 'hasAttribute', name);
  const tagOf = (e) => of(e, 'tagName');
  const visible = (e, how) => call(e, 'checkVisibility', how);

  const clean = (text, most) => {
    text = text.replace(/[\s\u200b\u202a-\u202e\u2066-\u2069]+/g, ' ').trim();
    return text.length > most ? text.slice(0, most - 1) + '…' : text;
  };
  const shadow = (e) => of(e, 'shadowRoot') || closed.get(e) || null;
  const inputs = {
    button: 'button', submit: 'button', reset: 'button', image: 'button', checkbox: 'checkbox', radio: 'radio', range: 'slider', number: 'spinbutton',
    search: 'searchbox', file: 'file', color: 'color', hidden: null,
  };
  const tags = {
    BUTTON: 'button', SUMMARY: 'button', TEXTAREA: 'textbox', H1: 'heading', H2: 'heading', H3: 'heading', H4: 'heading', H5: 'heading', H6: 'heading',
    NAV: 'navigation', MAIN: 'main', ASIDE: 'complementary', FORM: 'form', DIALOG: 'dialog', OPTION: 'option', PROGRESS: 'progressbar', METER: 'meter',
    OUTPUT: 'status', IFRAME: 'iframe', FRAME: 'iframe', ARTICLE: 'article', UL: 'list', OL: 'list', LI: 'listitem', TABLE: 'table', TR: 'row', TD: 'cell',
    TH: 'columnheader', FIELDSET: 'group', DETAILS: 'group', VIDEO: 'video', AUDIO: 'audio', SEARCH: 'search',
  };
  const usable = new Set(['link', 'button', 'textbox', 'searchbox', 'checkbox', 'radio', 'switch', 'slider', 'spinbutton', 'combobox', 'listbox', 'file', 'color',
    'menuitem', 'menuitemcheckbox', 'menuitemradio', 'tab', 'treeitem', 'clickable', 'video', 'audio', 'iframe']);
  const places = new Set(['heading', 'navigation', 'main', 'complementary', 'form', 'dialog', 'alertdialog', 'alert', 'status', 'banner', 'contentinfo', 'search',
    'region', 'progressbar', 'meter', 'img']);
  const structure = new Set(['article', 'list', 'listitem', 'table', 'row', 'cell', 'columnheader', 'gridcell', 'group']);
  const byContent = new Set(['link', 'button', 'heading', 'menuitem', 'menuitemcheckbox', 'menuitemradio', 'tab', 'treeitem', 'option', 'clickable', 'switch',
    'columnheader', 'checkbox', 'radio', 'alert', 'status']);

  const roleOf = (e) => {
    const said = attr(e, 'role');
    if (said) {
      const role = said.trim().split(/\s+/)[0];
      if (role && role !== 'none' && role !== 'presentation' && role !== 'generic') return role.slice(0, 32);
    }
    const tag = tagOf(e);
    if (tag === 'A' || tag === 'AREA') return has(e, 'href') ? 'link' : has(e, 'onclick') ? 'clickable' : '';
    if (tag === 'INPUT') return e.type in inputs ? inputs[e.type] || '' : e.list ? 'combobox' : 'textbox';
    if (tag === 'SELECT') return e.multiple || e.size > 1 ? 'listbox' : 'combobox';
    if (tag === 'IMG') return e.alt ? 'img' : '';
    if (tag === 'svg') return attr(e, 'aria-label') ? 'img' : '';
    if (tag === 'SECTION') return has(e, 'aria-label') || has(e, 'aria-labelledby') ? 'region' : '';
    if (tag === 'HEADER' || tag === 'FOOTER') return of(e, 'parentElement') === doc('body') ? (tag === 'HEADER' ? 'banner' : 'contentinfo') : '';
    if (tag in tags) return tags[tag];
    if (of(e, 'isContentEditable') && !(of(e, 'parentElement') && of(of(e, 'parentElement'), 'isContentEditable'))) return 'textbox';
    if (has(e, 'onclick') || (has(e, 'tabindex') && of(e, 'tabIndex') >= 0)) return 'clickable';
    return '';
  };
  const contentOf = (e, most) => {
    let text = '';
    const walk = (n, level) => {
      if (text.length > most * 2 || level > DEEPEST) return;
      if (of(n, 'nodeType') === 3) { text += n.data; return; }
      if (of(n, 'nodeType') !== 1) return;
      if (tagOf(n) === 'SCRIPT' || tagOf(n) === 'STYLE' || tagOf(n) === 'NOSCRIPT' || tagOf(n) === 'TEMPLATE') return;
      if (n !== e && (attr(n, 'aria-hidden') === 'true' || !visible(n, { visibilityProperty: true }))) return;
      const label = n !== e && attr(n, 'aria-label');
      if (label) { text += ' ' + label; return; }
      if (tagOf(n) === 'IMG') { text += ' ' + n.alt; return; }
      if (tagOf(n) === 'SLOT') { for (const c of n.assignedNodes().length ? n.assignedNodes() : of(n, 'childNodes')) walk(c, level + 1); return; }
      const root = shadow(n);
      for (const c of of(root || n, 'childNodes')) walk(c, level + 1);
      if (n !== e) text += ' ';
    };
    walk(e, 0);
    return clean(text, most);
  };
  const nameOf = (e, role) => {
    const by = attr(e, 'aria-labelledby');
    if (by) {
      const text = by.split(/\s+/).map((id) => call(e, 'getRootNode').getElementById && call(e, 'getRootNode').getElementById(id)).filter(Boolean).map((n) => contentOf(n, 120)).join(' ');
      if (text.trim()) return clean(text, 120);
    }
    const label = attr(e, 'aria-label');
    if (label && label.trim()) return clean(label, 120);
    const tag = tagOf(e);
    if (tag === 'IMG' || tag === 'AREA') return clean(e.alt || e.title || '', 120);
    if (of(e, 'labels') && of(e, 'labels').length) {
      const text = [...of(e, 'labels')].map((l) => contentOf(l, 120)).join(' ').trim();
      if (text) return clean(text, 120);
    }
    if (tag === 'INPUT' && (e.type === 'submit' || e.type === 'button' || e.type === 'reset')) return clean(e.value || e.type, 120);
    if (byContent.has(role)) {
      const text = contentOf(e, 120);
      if (text) return text;
    }
    if (tag === 'FIELDSET') { const l = call(e, 'querySelector', 'legend'); if (l) return contentOf(l, 120); }
    return clean(attr(e, 'placeholder') || attr(e, 'title') || attr(e, 'alt') || (tag === 'IFRAME' ? e.name : '') || '', 120);
  };
  const number = (e, role, name) => {
    const known = numbers.get(e);
    if (known) {
      const entry = given.get(known);
      entry.role = role; entry.name = name;
      return known;
    }
    const n = next++;
    numbers.set(e, n);
    given.set(n, { at: new WeakRef(e), role, name });
    return n;
  };
  const focused = () => {
    let a = doc('activeElement');
    while (a && shadow(a) && shadow(a).activeElement) a = shadow(a).activeElement;
    return a;
  };
  const states = (e, role, focus) => {
    const out = [];
    const aria = (name) => attr(e, 'aria-' + name);
    if (role === 'heading') out.push('level=' + (aria('level') || tagOf(e).slice(1) || 2));
    if (tagOf(e) === 'INPUT' && (e.type === 'checkbox' || e.type === 'radio') ? e.checked : aria('checked') === 'true') out.push('checked');
    if (of(e, 'disabled') || aria('disabled') === 'true') out.push('disabled');
    if (aria('expanded')) out.push(aria('expanded') === 'true' ? 'expanded' : 'collapsed');
    else if (tagOf(e) === 'SUMMARY' && of(e, 'parentElement') && of(e, 'parentElement').tagName === 'DETAILS') out.push(of(e, 'parentElement').open ? 'expanded' : 'collapsed');
    if (aria('selected') === 'true') out.push('selected');
    if (aria('pressed') === 'true') out.push('pressed');
    if (aria('current') && aria('current') !== 'false') out.push('current');
    if (of(e, 'required')) out.push('required');
    if (of(e, 'readOnly') && (role === 'textbox' || role === 'searchbox')) out.push('readonly');
    if (aria('invalid') === 'true') out.push('invalid');
    if (e === focus) out.push('focused');
    return out.length ? ' [' + out.join(' ') + ']' : '';
  };
  const valueOf = (e, role) => {
    if (tagOf(e) === 'SELECT') return clean([...e.selectedOptions].map((o) => o.label).join(', '), 80);
    if (tagOf(e) === 'INPUT' && e.type === 'password') return e.value ? '••••' : '';
    if (tagOf(e) === 'INPUT' && e.type === 'file') return clean([...e.files].map((f) => f.name).join(', '), 80);
    if (role === 'textbox' || role === 'searchbox' || role === 'spinbutton' || role === 'slider' || role === 'combobox' || role === 'color') {
      return clean(of(e, 'value') !== undefined ? String(of(e, 'value')) : of(e, 'isContentEditable') ? of(e, 'textContent') : '', 80);
    }
    if (role === 'progressbar' || role === 'meter') return String(of(e, 'value') === undefined ? attr(e, 'aria-valuenow') || '' : of(e, 'value'));
    return '';
  };
  const near = (e) => {
    const place = call(e, 'closest', 'tr,li,label,fieldset,[role=row],[role=listitem]');
    return place ? contentOf(place, 48) : '';
  };
  const line = (e, role, name, gen, focus) => {
    let text = role;
    if (name) text += ' ' + JSON.stringify(name);
    const n = number(e, role, name);
    text += ` s${gen}e${n}` + states(e, role, focus);
    const value = valueOf(e, role);
    if (value) text += ' = ' + JSON.stringify(value);
    if (!name && usable.has(role)) { const by = near(e); if (by) text += ' near ' + JSON.stringify(by); }
    if (role === 'link' && typeof e.href === 'string') {
      const at = e.href.startsWith(location.origin + '/') ? e.href.slice(location.origin.length) : e.href;
      if (!at.startsWith('javascript:')) text += ' → ' + clean(at, 80);
    }
    return { text, n };
  };
  const hosts = [];
  const interesting = (role, name, filter) => {
    if (!role) return false;
    if (usable.has(role)) return true;
    if (places.has(role)) return role !== 'form' || !!name;
    return filter === 'all' && structure.has(role);
  };

  // Calls `take(element, role, depth)` for each element that is shown; the depth below it grows when it says true. `text` hears what stands between.
  const visit = (top, take, text) => {
    let stop = false;
    const walk = (n, depth, level) => {
      if (stop || level > DEEPEST) return;
      if (of(n, 'nodeType') === 3) { if (text && n.data.trim()) stop = text(n, depth) === false; return; }
      if (of(n, 'nodeType') !== 1) return;
      const tag = tagOf(n);
      if (tag === 'SCRIPT' || tag === 'STYLE' || tag === 'NOSCRIPT' || tag === 'TEMPLATE' || tag === 'HEAD') return;
      if (!visible(n) && tag !== 'OPTION') { if (getComputedStyle(n).display !== 'contents') return; }
      if (attr(n, 'aria-hidden') === 'true' || of(n, 'inert')) return;
      const role = roleOf(n);
      let below = depth, skip = false;
      if (role && (visible(n, { visibilityProperty: true }) || tag === 'OPTION')) {
        const took = take(n, role, depth);
        if (took === false) { stop = true; return; }
        if (took) { below = depth + 1; skip = took === 'leaf'; }
      }
      if (skip || tag === 'SELECT' || tag === 'svg' || tag === 'IFRAME') return;
      const root = shadow(n);
      if (root) observe(root);
      else if (tag.includes('-') && hosts.length < 64 && !closed.has(n)) hosts.push(n);
      if (tag === 'SLOT') { const nodes = n.assignedNodes(); for (const c of nodes.length ? nodes : of(n, 'childNodes')) walk(c, below, level + 1); return; }
      for (let c = of(root || n, 'firstChild'); c && !stop; c = of(c, 'nextSibling')) walk(c, below, level + 1);
    };
    walk(top, 0, 0);
    return stop;
  };

  const snapshot = ({ gen, filter, skip, budget, depth: most, scope }) => {
    hosts.length = 0;
    const top = scope || doc('body') || doc('documentElement');
    const focus = focused();
    const lines = [];
    let bytes = 0, seen = 0;
    const add = (depth, text, frame) => {
      if (seen++ < skip) { if (frame) lines.push({ d: depth, t: '', f: frame, s: 1 }); return true; }
      const cost = text.length + depth * 2 + 1;
      if (bytes + cost > budget) { seen--; return false; }
      bytes += cost;
      lines.push(frame ? { d: depth, t: text, f: frame } : { d: depth, t: text });
      return true;
    };
    const cut = top ? visit(top, (e, role, depth) => {
      if (most !== null && depth > most) return 'leaf';
      if (filter !== 'all' && !usable.has(role) && !places.has(role)) return '';
      const name = nameOf(e, role);
      if (!interesting(role, name, filter)) return '';
      const { text, n } = line(e, role, name, gen, focus);
      if (!add(depth, text, role === 'iframe' ? n : 0)) return false;
      return (byContent.has(role) && filter === 'all' && !call(e, 'querySelector', 'a,button,input,select,textarea,[role],[tabindex]')) || role === 'textbox' ? 'leaf' : true;
    }, filter === 'all' ? (n, depth) => add(depth, clean(n.data, 400)) : null) : false;
    return { lines, seen, cut, changes, title: doc('title'), url: location.href, hosts: hosts.length };
  };

  const deep = (root, selector, out) => {
    const all = root === document ? doc('querySelectorAll') : root.querySelectorAll;
    for (const e of all.call(root, selector)) out.push(e);
    const walker = doc('createTreeWalker').call(document, root, 1);
    for (let n = walker.currentNode; n; n = walker.nextNode()) { const inner = of(n, 'nodeType') === 1 && shadow(n); if (inner) deep(inner, selector, out); }
    return out;
  };
  const shown = (e) => visible(e, { visibilityProperty: true }) && call(e, 'getClientRects').length > 0;
  const describe = (e, gen) => { const role = roleOf(e) || tagOf(e).toLowerCase(); return line(e, role, nameOf(e, role), gen, null).text; };
  const fail = (code, message, more) => ({ failed: code, message, ...more });

  const byText = (wanted) => {
    const lower = clean(wanted, 400).toLowerCase();
    let exact = [], part = [];
    visit(doc('body') || doc('documentElement'), (e, role) => {
      if (!usable.has(role) && role !== 'heading' && role !== 'option') return '';
      const name = nameOf(e, role).toLowerCase();
      if (name === lower) exact.push(e); else if (name.includes(lower)) part.push(e);
      return '';
    }, (n) => {
      const e = of(n, 'parentElement'), text = clean(n.data, 400).toLowerCase();
      if (!e || !shown(e)) return true;
      if (text === lower) exact.push(e); else if (text.includes(lower)) part.push(e);
      return true;
    });
    const best = exact.length ? exact : part;
    // Text inside a control stands for the control.
    const usableOf = (e) => { for (let p = e; p; p = of(p, 'parentElement')) { if (usable.has(roleOf(p))) return p; if (tagOf(p) === 'LABEL') return p.control && shown(p.control) ? p.control : p; } return e; };
    return [...new Set(best.map(usableOf))];
  };
  const find = (target, gen) => {
    if (target.n) {
      const entry = given.get(target.n), e = entry && entry.at.deref();
      if (!e || !of(e, 'isConnected')) return fail('stale_ref', 'that element is not in the page any more');
      const role = roleOf(e) || tagOf(e).toLowerCase();
      const name = nameOf(e, role);
      if (role !== entry.role || name !== entry.name) return fail('stale_ref', `that element was ${entry.role} ${JSON.stringify(entry.name)} and is ${role} ${JSON.stringify(name)} now`);
      return { e };
    }
    let found;
    if (target.text !== undefined) found = byText(target.text);
    else {
      try { found = deep(document, target.css, []); } catch { return fail('bad_target', `${JSON.stringify(target.css)} is neither a ref, nor text=…, nor a CSS selector`); }
    }
    if (found.length > 1) { const visible = found.filter(shown); if (visible.length) found = visible; }
    if (!found.length) return fail('not_found', 'nothing on the page fits that target');
    if (found.length > 1) return fail('ambiguous_target', `${found.length} elements fit that target; use a ref`, { candidates: found.slice(0, 5).map((e) => describe(e, gen)) });
    return { e: found[0] };
  };
  const inside = (outer, e) => { for (let n = e; n; n = of(n, 'parentNode') || n.host) if (n === outer) return true; return false; };
  const hit = (x, y) => {
    let e = doc('elementFromPoint').call(document, x, y);
    for (let root = e && shadow(e); root; root = e && shadow(e)) { const inner = root.elementFromPoint(x, y); if (!inner || inner === e) break; e = inner; }
    return e;
  };
  const pointOf = (e) => {
    for (const r of call(e, 'getClientRects')) {
      const left = Math.max(0, r.left), top = Math.max(0, r.top), right = Math.min(innerWidth, r.right), bottom = Math.min(innerHeight, r.bottom);
      if (right - left >= 1 && bottom - top >= 1) return [(left + right) / 2, (top + bottom) / 2];
    }
    return null;
  };
  // The element, ready to be used: visible, enabled, in view, and what a click there would reach.
  const ready = (target, wants, gen) => {
    const found = find(target, gen);
    if (found.failed) return found;
    let e = found.e;
    if (wants.exists) return { e };
    if (!shown(e)) return fail('not_visible', 'that element is not visible');
    if (wants.enabled && (of(e, 'disabled') || attr(e, 'aria-disabled') === 'true')) return fail('disabled', 'that element is disabled');
    if (wants.editable && of(e, 'readOnly')) return fail('readonly', 'that element cannot be written to');
    let point = pointOf(e);
    const reaches = () => { const h = hit(...point); return !h || inside(e, h) || (of(e, 'labels') && [...of(e, 'labels')].some((l) => inside(l, h))) || (tagOf(h) === 'LABEL' && h.control === e) || (inside(h, e) && tagOf(e) !== 'BUTTON' && getComputedStyle(e).display === 'inline') ? null : h; };
    let over = point && wants.hit ? reaches() : null;
    if (!point || over) {
      call(e, 'scrollIntoView', { block: 'center', inline: 'center', behavior: 'instant' });
      point = pointOf(e);
      if (!point) return fail('not_visible', 'that element cannot be brought into view');
      over = wants.hit ? reaches() : null;
    }
    if (over) return fail('covered_by', `another element is over it: ${describe(over, gen)}`, { by: describe(over, gen) });
    return { e, x: point[0], y: point[1] };
  };
  let last = null; // the element of the step before, for the next half of an action

  const prepare = ({ target, wants, gen }) => {
    const r = ready(target, wants, gen);
    if (r.failed) return r;
    last = r.e;
    return { x: r.x, y: r.y, tag: tagOf(r.e), type: tagOf(r.e) === 'INPUT' ? r.e.type : '', checked: tagOf(r.e) === 'INPUT' ? r.e.checked : attr(r.e, 'aria-checked') === 'true', changes };
  };
  const element = () => last;
  const editable = (e) => (tagOf(e) === 'INPUT' && !['button', 'submit', 'reset', 'image', 'checkbox', 'radio', 'file', 'hidden'].includes(e.type)) || tagOf(e) === 'TEXTAREA' || of(e, 'isContentEditable');
  // Focus and, to fill, everything selected; some fields take their value only as a whole.
  const edit = ({ target, value, gen }) => {
    const r = ready(target, { enabled: true, editable: true }, gen);
    if (r.failed) return r;
    let e = r.e;
    if (tagOf(e) === 'LABEL' && e.control) e = e.control;
    if (!editable(e)) return fail('not_editable', `that element is ${describe(e, gen)}, which takes no text`);
    e.focus();
    if (focused() !== e && !inside(e, focused())) return fail('not_focusable', 'that element does not take the focus');
    if (value === null) {
      if (of(e, 'isContentEditable')) getSelection().selectAllChildren(e), getSelection().collapseToEnd();
      else if (e.setSelectionRange && !['number', 'email', 'date', 'color', 'range', 'time', 'month', 'week', 'datetime-local'].includes(e.type)) e.setSelectionRange(e.value.length, e.value.length);
      return { mode: 'insert' };
    }
    if (tagOf(e) === 'INPUT' && ['date', 'time', 'month', 'week', 'datetime-local', 'color', 'range'].includes(e.type)) {
      e.value = value;
      if (e.value !== value) return fail('bad_value', `that field does not take ${JSON.stringify(value)}`);
      for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, { bubbles: true, composed: true }));
      return { mode: 'done' };
    }
    if (of(e, 'isContentEditable')) getSelection().selectAllChildren(e);
    else e.select();
    return { mode: value === '' ? 'delete' : 'insert' };
  };
  const choose = ({ target, values, gen }) => {
    const r = ready(target, { enabled: true }, gen);
    if (r.failed) return r;
    const e = r.e;
    if (tagOf(e) !== 'SELECT') return fail('not_a_list', `that element is ${describe(e, gen)}; click it and then the option`);
    const options = [...e.options], chosen = [];
    for (const value of values) {
      const option = options.find((o) => o.value === value) || options.find((o) => clean(o.label, 400) === clean(value, 400));
      if (!option) return fail('no_such_option', `no option ${JSON.stringify(value)}; there are: ${options.slice(0, 20).map((o) => JSON.stringify(clean(o.label, 60))).join(', ')}`);
      if (option.disabled) return fail('disabled', `the option ${JSON.stringify(value)} is disabled`);
      chosen.push(option);
    }
    if (!e.multiple && chosen.length !== 1) return fail('bad_value', 'that list takes exactly one value');
    for (const o of options) o.selected = chosen.includes(o);
    for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, { bubbles: true, composed: true }));
    return { selected: chosen.map((o) => o.label) };
  };
  const search = ({ text, regex, role, limit, gen }) => {
    const focus = focused(), out = [];
    let more = 0, pattern = null;
    try { if (regex) pattern = new RegExp(regex, 'i'); } catch (error) { return fail('bad_regex', String(error.message).slice(0, 200)); }
    const lower = text && clean(text, 400).toLowerCase();
    const fits = (name) => (!lower || name.toLowerCase().includes(lower)) && (!pattern || pattern.test(name));
    const take = (e, r, name) => { if (out.length < limit) out.push(line(e, r, name, gen, focus).text); else more++; };
    const own = new Set();
    visit(doc('body') || doc('documentElement'), (e, r) => {
      if (role && r !== role) return '';
      if (!role && r !== 'option' && !usable.has(r) && !places.has(r)) return '';
      const name = nameOf(e, r);
      if (fits(name)) { own.add(e); take(e, r, name); }
      return '';
    }, role ? null : (n) => {
      const e = of(n, 'parentElement');
      if (!e || own.has(e) || !shown(e)) return true;
      const data = clean(n.data, 200);
      for (let p = e; p; p = of(p, 'parentElement')) if (own.has(p)) return true;
      if (fits(data)) { own.add(e); take(e, 'text', data); }
      return true;
    });
    return { found: out, more };
  };
  const read = ({ target, offset, budget, gen }) => {
    let top = doc('body') || doc('documentElement');
    if (target) { const found = find(target, gen); if (found.failed) return found; top = found.e; }
    const text = (top && (top.innerText !== undefined ? top.innerText : top.textContent) || '').replace(/\n{3,}/g, '\n\n');
    let end = Math.min(text.length, offset + budget);
    if (end < text.length && text.charCodeAt(end - 1) >= 0xd800 && text.charCodeAt(end - 1) < 0xdc00) end--;
    return { text: text.slice(offset, end), next: end < text.length ? end : null, length: text.length };
  };
  const says = (wanted) => {
    const lower = clean(wanted, 400).toLowerCase();
    const text = doc('body') ? clean(doc('body').innerText, 1e9).toLowerCase() : '';
    if (text.includes(lower)) return true;
    return byText(wanted).length > 0;
  };
  // Resolves with the next change of the page, or after a time.
  const changed = (ms) => new Promise((done) => {
    const timer = setTimeout(finish, ms);
    // Pages that change all the time are not looked at all the time.
    const watch = new MutationObserver(() => setTimeout(finish, 10));
    watch.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    addEventListener('input', finish, { capture: true, once: true });
    function finish() { clearTimeout(timer); watch.disconnect(); removeEventListener('input', finish, true); done(changes); }
  });
  // What an action has set off has had a frame to show itself; what a script or a value has, the handlers of its events.
  const settle = (frame) => new Promise((done) => {
    if (!frame) return void setTimeout(done, 0);
    const timer = setTimeout(done, 60);
    requestAnimationFrame(() => setTimeout(() => { clearTimeout(timer); done(); }, 0));
  });
  const report = async ({ gen, since, filter, budget, wait }) => {
    if (wait !== 'no') await settle(wait === 'frame');
    if (since !== null && since === changes) return { changes, title: doc('title'), url: location.href, same: true };
    return snapshot({ gen, filter, skip: 0, budget, depth: null, scope: null });
  };
  const scoped = (options, target) => {
    if (!target) return snapshot({ ...options, scope: null });
    const found = find(target, options.gen);
    return found.failed ? found : snapshot({ ...options, scope: found.e });
  };
  const rect = (target, gen) => {
    const r = ready(target, {}, gen);
    if (r.failed) return r;
    const b = call(r.e, 'getBoundingClientRect');
    return { x: b.left + scrollX, y: b.top + scrollY, width: b.width, height: b.height };
  };
  let marks = null;
  const annotate = (gen) => {
    clear();
    marks = doc('createElement').call(document, 'div');
    const root = marks.attachShadow({ mode: 'closed' });
    marks.style.cssText = 'all:initial;position:absolute;left:0;top:0;width:0;height:0;z-index:2147483647';
    let count = 0;
    visit(doc('body') || doc('documentElement'), (e, role) => {
      if (!usable.has(role) || !shown(e)) return '';
      if (++count > 300) return false;
      const b = call(e, 'getBoundingClientRect');
      const n = number(e, role, nameOf(e, role));
      const box = doc('createElement').call(document, 'div');
      box.style.cssText = `position:absolute;box-sizing:border-box;border:2px solid #d00;left:${b.left + scrollX}px;top:${b.top + scrollY}px;width:${b.width}px;height:${b.height}px`;
      const label = doc('createElement').call(document, 'span');
      label.textContent = `s${gen}e${n}`;
      label.style.cssText = 'position:absolute;left:-2px;top:-13px;background:#d00;color:#fff;font:10px/12px monospace;padding:0 2px';
      box.append(label);
      root.append(box);
      return '';
    });
    doc('documentElement').append(marks);
    observer.takeRecords();
    return { count };
  };
  const clear = () => { if (marks) { marks.remove(); marks = null; observer.takeRecords(); } return {}; };
  const store = ({ session, entries, wipe }) => {
    const area = session ? sessionStorage : localStorage;
    if (wipe) { area.clear(); return {}; }
    if (entries) { for (const { name, value } of entries) area.setItem(name, value); return {}; }
    const out = {};
    let bytes = 0;
    for (let i = 0; i < area.length; i++) { const k = area.key(i), v = area.getItem(k); bytes += k.length + v.length; if (bytes > 200000) break; out[k] = v; }
    return out;
  };
  const unopened = () => hosts.shift() || null;
  const opened = (host, root) => { if (root) { closed.set(host, root); observe(root); changes++; } else closed.set(host, null); };
  const at = (x, y) => { const e = hit(x, y); return !!e && (tagOf(e) === 'IFRAME' || tagOf(e) === 'FRAME'); };
  const exists = (target, gen) => { const f = find(target, gen); return !f.failed && shown(f.e); };
  globalThis.cortex = { snapshot: scoped, report, prepare, element, edit, choose, search, read, says, changed, rect, annotate, clear, store, unopened, opened, at, exists, find: (t, g) => { const f = find(t, g); return f.failed ? null : f.e; } };
})();
