'use strict';
// Texts of passages and answers are shown by textContent alone: nothing that
// they hold becomes part of the page.

const at = (id) => document.getElementById(id);
let models = [];
let running = null;

function headers() {
  const found = {'Content-Type': 'application/json'};
  if (at('key').value) found.Authorization = `Bearer ${at('key').value}`;
  return found;
}

async function failure(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `${reply.status} ${reply.statusText}`;
  }
}

async function call(path, body, signal) {
  const reply = await fetch(path, {
    method: body ? 'POST' : 'GET',
    headers: headers(),
    body: body && JSON.stringify(body),
    signal,
  });
  if (!reply.ok) {
    const error = new Error(await failure(reply));
    error.status = reply.status;
    throw error;
  }
  return reply;
}

// Calls a function with each event of a stream.
async function stream(body, signal, each) {
  const reply = await call('v1/chat/completions', {...body, stream: true}, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) throw new Error('the answer broke off');
    held += value;
    const parts = held.split('\n\n');
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, '');
      if (data === '[DONE]') return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      each(event);
    }
  }
}

function showProblem(error) {
  if (error.name === 'AbortError') return;
  at('problem').textContent = error.message;
  at('problem').hidden = false;
  if (error.status === 401) at('key-row').hidden = false;
}

function showTable() {
  const found = models.find((model) => model.id === at('table').value);
  if (!found) return;
  at('k').max = found.vtokens.k;
  at('k').value = found.vtokens.k;
  showK();
}

function showK() {
  at('k-shown').textContent = at('k').value;
}

function showPassages(passages) {
  at('found').replaceChildren(...passages.map((passage) => {
    const item = document.createElement('li');
    if (passage.title) {
      const title = document.createElement('strong');
      title.textContent = passage.title;
      item.append(title);
    }
    item.append(passage.text);
    return item;
  }));
  at('none').hidden = passages.length > 0;
  at('none').textContent = 'None.';
}

async function loadModels() {
  const found = (await (await call('v1/models')).json()).data;
  models = found.filter((model) => model.id !== 'base');
  at('problem').hidden = true;
  const chosen = at('table').value;
  at('table').replaceChildren(...models.map((model) => {
    const option = document.createElement('option');
    option.value = option.textContent = model.id;
    return option;
  }));
  if (models.some((model) => model.id === chosen)) at('table').value = chosen;
  showTable();
  const index = found.some((model) => model.vtokens.index);
  at('own').open = !index;
  at('own').dataset.index = index;
  at('status').textContent = index
    ? 'Passages are found in the index of this server, unless you give your own.'
    : 'This server has no index: give passages of your own.';
}

async function passagesFor(question, signal) {
  const own = at('passages').value.split(/\n\s*\n/).map((text) => text.trim());
  const given = own.filter(Boolean).map((text) => ({text}));
  if (given.length || at('own').dataset.index !== 'true') return given;
  const reply = await call('v1/search', {query: question}, signal);
  // The score is ours to show, not the question's.
  return (await reply.json()).passages.map(({title, text}) => ({title, text}));
}

async function answer(id, body, signal) {
  const began = performance.now();
  let first = 0;
  await stream(body, signal, (event) => {
    const text = event.choices[0]?.delta.content;
    if (text) {
      first ||= performance.now() - began;
      at(id).textContent += text;
    }
  });
  const all = performance.now() - began;
  at(`${id}-note`).textContent =
    `${(first / 1000).toFixed(2)} s to the first text, ${(all / 1000).toFixed(2)} s in all`;
}

async function ask() {
  running?.abort();
  const mine = running = new AbortController();
  at('problem').hidden = true;
  for (const id of ['with', 'without', 'with-note', 'without-note']) at(id).textContent = '';
  at('stop').disabled = false;
  at('ask').disabled = true;
  try {
    if (!models.length) await loadModels();
    const question = at('question').value;
    const k = Number(at('k').value);
    const table = at('table').value;
    const passages = await passagesFor(question, mine.signal);
    showPassages(passages);
    at('with-title').textContent = `With ${k} virtual tokens`;
    const body = {messages: [{role: 'user', content: question}], passages};
    const results = await Promise.allSettled([
      answer('with', {...body, model: table, k}, mine.signal),
      answer('without', {...body, model: 'base'}, mine.signal),
    ]);
    for (const result of results) if (result.reason) throw result.reason;
  } catch (error) {
    showProblem(error);
  } finally {
    if (running === mine) {
      at('stop').disabled = true;
      at('ask').disabled = false;
    }
  }
}

at('form').addEventListener('submit', (event) => {
  event.preventDefault();
  ask();
});
at('stop').addEventListener('click', () => running?.abort());
at('table').addEventListener('change', showTable);
at('k').addEventListener('input', showK);
at('key').addEventListener('change', () => loadModels().catch(showProblem));
loadModels().catch(showProblem);
