'use strict';

(() => {
const PAGE = 50;
const data = JSON.parse(document.getElementById('data').textContent);
const get = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString('en');

/** An element; its children are elements or text, never HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? '' : value);
    }
  }
  element.append(...children);
  return element;
}

// What does not change.

function plainTable(table) {
  const cell = (tag, text, i) => {
    const scope = tag === 'th' ? 'row' : undefined;
    return make(tag, {scope, class: i < table.labels ? undefined : 'number'},
      text);
  };
  const head = table.header.map((text, i) => make('th',
    {scope: 'col', class: i < table.labels ? undefined : 'number'}, text));
  const rows = table.rows.map((row) => make('tr',
    {class: row[0] === 'Avg' ? 'average' : undefined},
    ...row.map((text, i) => cell(i ? 'td' : 'th', text, i))));
  const parts = [make('div',
    {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': table.title},
    make('table', {class: 'plain'},
      make('thead', {}, make('tr', {}, ...head)),
      make('tbody', {}, ...rows)))];
  if (table.note) parts.push(make('p', {class: 'note'}, table.note));
  return parts;
}

function showReport() {
  for (const [name, text] of data.facts) {
    get('facts').append(
      make('div', {}, make('dt', {}, name), make('dd', {}, text)));
  }
  get('cards').hidden = !data.cards.length;
  for (const card of data.cards) {
    get('cards').append(make('div', {class: 'card'},
      make('h3', {}, card.label),
      make('div', {class: 'big'},
        make('span', {}, card.em, make('small', {}, 'EM')),
        make('span', {}, card.f1, make('small', {}, 'F1'))),
      make('p', {class: 'delta'}, card.difference),
      make('p', {class: 'soft'}, card.reference)));
  }
  for (const table of data.tables) {
    get('tables').append(make('div', {class: 'block'},
      make('h3', {}, table.title), ...plainTable(table)));
  }
  for (const table of data.more) {
    get('more').append(make('details', {},
      make('summary', {}, table.title), ...plainTable(table)));
  }
  get('pictures-section').hidden = !data.pictures.length;
  for (const {text, src} of data.pictures) {
    get('pictures').append(make('figure', {},
      make('img', {src, alt: text}), make('figcaption', {}, text)));
  }
  for (const [name, text] of data.conditions) {
    get('conditions').append(make('dt', {}, name), make('dd', {}, text));
  }
  get('settings').textContent = data.settings;
}

// The questions.

const questions = data.questions;
questions.forEach((question, i) => { question.index = i; });
const state = {
  first: data.pair[0] ?? 0,
  second: data.pair[1] ?? 0,
  outcome: 'all',
  dataset: '',
  search: '',
  sort: 'index',
  descending: false,
  page: 0,
  open: new Set(),
  allColumns: data.columns.length <= 4,
};

const outcomes = {
  all: {label: () => 'All questions', test: () => true},
  fixed: {
    pair: true,
    label: () => `${data.columns[state.second]} fixed it`,
    test: (said) => both(said) && !said[state.first].right &&
      said[state.second].right,
  },
  broke: {
    pair: true,
    label: () => `${data.columns[state.second]} broke it`,
    test: (said) => both(said) && said[state.first].right &&
      !said[state.second].right,
  },
  right: {
    label: () => 'Every condition right',
    test: (said) => asked(said).length > 0 && asked(said).every((s) => s.right),
  },
  wrong: {
    label: () => 'Every condition wrong',
    test: (said) => asked(said).length > 0 &&
      asked(said).every((s) => !s.right),
  },
};
const asked = (said) => said.filter((one) => one !== null);
const both = (said) => said[state.first] && said[state.second];

/** All text of a question, in lower case; made when it is first wanted. */
function haystack(question) {
  question.haystack ??= [
    question.id, question.question, ...question.answers,
    ...asked(question.said).map((said) => said.text),
    ...question.shown.flatMap((shown) => shown.passages.flatMap(
      ({passage}) => data.passages[passage].slice(1))),
  ].join('\n').toLowerCase();
  return question.haystack;
}

/** By right or wrong, then by F1; what was not asked comes last. */
const score = (said) => said ? said.right * 1000 + said.f1 : -1;
const difference = ({said}) => both(said)
  ? said[state.second].f1 - said[state.first].f1 : -Infinity;

/** The columns: of each an id, a title, what to sort by, its cell. */
function columns() {
  const shown = state.allColumns ? data.columns.map((_, i) => i)
    : data.pair.length ? [state.first, state.second] : [state.first];
  const list = [
    {id: 'index', title: '#', key: (q) => q.index, number: true,
      cell: (q) => [number(q.index + 1)]},
    {id: 'dataset', title: 'Dataset', key: (q) => q.dataset,
      cell: (q) => [q.dataset]},
    {id: 'question', title: 'Question', key: (q) => q.question,
      cell: questionCell},
    {id: 'answers', title: 'Answers', key: (q) => q.answers.join(' | '),
      cell: (q) => [q.answers.length ? q.answers.slice(0, 3).join(' | ') + (
        q.answers.length > 3 ? ` | and ${q.answers.length - 3} more` : '')
        : make('span', {class: 'empty'}, 'unanswerable')]},
    ...shown.map((i) => ({
      id: `said-${i}`, title: data.columns[i], key: (q) => score(q.said[i]),
      descends: true, cell: (q) => saidCell(q.said[i]),
    })),
  ];
  if (data.pair.length) {
    list.push({
      id: 'difference', title: 'F1 gained', key: difference, descends: true,
      number: true, cell: (q) => both(q.said) ? [signed(difference(q))] : [],
    });
  }
  return list;
}

function signed(value) {
  const text = Math.abs(value).toFixed(1);
  return text === '0.0' ? text : (value > 0 ? '+' : '\u2212') + text;
}

function badge(said) {
  return make('span', {class: `badge ${said.right ? 'right' : 'wrong'}`},
    said.right ? '\u2713 right' : '\u2717 wrong');
}

function textOf(said) {
  return said.text === ''
    ? make('span', {class: 'empty'}, '(empty)')
    : make('span', {class: 'text'}, said.text);
}

function saidCell(said) {
  if (!said) return [make('span', {class: 'empty'}, 'not asked')];
  return [textOf(said), make('span', {class: 'score'}, badge(said),
    ` F1 ${said.f1.toFixed(1)}`)];
}

function questionCell(question) {
  const open = state.open.has(question.index);
  const button = make('button', {
    type: 'button',
    'aria-expanded': String(open),
    'aria-controls': open ? `detail-${question.index}` : undefined,
  }, make('span', {class: 'text'}, question.question));
  button.addEventListener('click', () => toggle(question));
  return [button];
}

function toggle(question) {
  const {index} = question;
  if (!state.open.delete(index)) state.open.add(index);
  const row = get(`row-${index}`);
  const button = row.querySelector('.question button');
  const open = state.open.has(index);
  row.classList.toggle('open', open);
  button.setAttribute('aria-expanded', String(open));
  if (open) {
    row.after(detailRow(question));
    button.setAttribute('aria-controls', `detail-${index}`);
  } else {
    get(`detail-${index}`).remove();
    button.removeAttribute('aria-controls');
  }
}

/** The text with every occurrence of an answer marked. */
function marked(text, answers) {
  const escaped = answers.filter((answer) => answer.trim())
    .sort((a, b) => b.length - a.length)
    .map((answer) => answer.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  if (!escaped.length) return [text];
  // Odd pieces of a split by one group are what it found.
  const word = `(?<![\\p{L}\\p{N}])(${escaped.join('|')})(?![\\p{L}\\p{N}])`;
  return text.split(new RegExp(word, 'iu'))
    .map((piece, i) => i % 2 ? make('mark', {}, piece) : piece);
}

function passageItem({rank, passage, answer}, answers) {
  const [id, title, text] = data.passages[passage];
  const head = make('div', {class: 'head'},
    make('span', {class: 'soft'}, `rank ${rank}`),
    make('strong', {}, title || '(no title)'));
  if (answer) {
    head.append(
      make('span', {class: 'badge right'}, '\u2713 contains an answer'));
  }
  if (id) head.append(make('span', {class: 'soft'}, id));
  return make('li', {class: answer ? 'holds' : undefined}, head,
    make('div', {class: 'text'}, ...marked(text, answers)));
}

function detailRow(question) {
  const inner = make('div', {class: 'inner'},
    make('h4', {}, 'Accepted answers'),
    make('p', {}, question.answers.join(' | ') || 'none: unanswerable'),
    make('p', {class: 'soft'}, `id ${question.id}`),
    make('h4', {}, 'Predictions'), predictions(question));
  for (const shown of question.shown) {
    const to = shown.columns.map((i) => data.columns[i]).join(', ');
    inner.append(make('h4', {}, shown.passages.length
      ? `Passages shown to ${to}` : `No passages were shown to ${to}`));
    inner.append(make('ol', {class: 'passages'}, ...shown.passages.map(
      (passage) => passageItem(passage, question.answers))));
  }
  const span = columns().length;
  return make('tr', {class: 'detail', id: `detail-${question.index}`},
    make('td', {colspan: span}, inner));
}

function predictions(question) {
  const names = Object.keys(asked(question.said)[0]?.others ?? {});
  const head = ['Condition', 'Prediction', 'EM', 'F1', ...names, 'Tokens',
    'Ended by', 'Confidence'];
  const rows = [];
  question.said.forEach((said, i) => {
    if (!said) return;
    rows.push(make('tr', {},
      make('td', {}, data.columns[i]),
      make('td', {class: 'prediction'}, textOf(said)),
      make('td', {}, badge(said)),
      ...[said.f1, ...names.map((name) => said.others[name])].map((value) =>
        make('td', {class: 'number'}, value?.toFixed(1) ?? '')),
      make('td', {class: 'number'}, String(said.tokens)),
      make('td', {}, said.stop),
      make('td', {class: 'number'}, said.confidence?.toFixed(2) ?? '')));
  });
  return make('div', {class: 'scroll', tabindex: '0', role: 'region',
    'aria-label': 'Predictions'}, make('table', {},
    make('thead', {}, make('tr', {},
      ...head.map((text) => make('th', {scope: 'col'}, text)))),
    make('tbody', {}, ...rows)));
}

const collator = new Intl.Collator('en', {numeric: true, sensitivity: 'base'});

function compare(a, b) {
  return typeof a === 'string' ? collator.compare(a, b)
    : a < b ? -1 : a > b ? 1 : 0;
}

/** Draws the rows that fit the filters, and all counts. */
function show() {
  const words = state.search.toLowerCase().trim();
  const fitting = questions.filter((question) =>
    (!state.dataset || question.dataset === state.dataset) &&
    (!words || haystack(question).includes(words)));
  showOutcomes(fitting);
  const list = columns();
  const column = list.find(({id}) => id === state.sort) ?? list[0];
  const keys = new Map(questions.map((q) => [q, column.key(q)]));
  const sign = state.descending ? -1 : 1;
  const rows = fitting
    .filter(({said}) => outcomes[state.outcome].test(said))
    .sort((a, b) => sign * compare(keys.get(a), keys.get(b)) ||
      a.index - b.index);
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const start = state.page * PAGE;
  const part = rows.slice(start, start + PAGE);
  const range = rows.length > PAGE
    ? `, rows ${number(start + 1)} to ${number(start + part.length)}` : '';
  get('count').textContent =
    `${number(rows.length)} of ${number(questions.length)} questions${range}`;
  get('page').textContent = `${state.page + 1} / ${pages}`;
  get('previous').disabled = state.page === 0;
  get('next').disabled = state.page === pages - 1;
  get('none').hidden = rows.length > 0;
  get('scroll').hidden = rows.length === 0;
  showHead(list, column);
  get('table').tBodies[0].replaceChildren(...part.flatMap((question) => {
    const open = state.open.has(question.index);
    const row = make('tr',
      {id: `row-${question.index}`, class: open ? 'open' : undefined},
      ...list.map(({id, title, cell, number: right}) => make('td', {
        class: right ? 'number' : id.replace(/-.*/, ''), 'data-label': title,
      }, make('div', {}, ...cell(question)))));
    return open ? [row, detailRow(question)] : [row];
  }));
}

function showHead(list, sorted) {
  const focused = document.activeElement?.dataset?.sort;
  const row = make('tr', {}, ...list.map((column) => {
    const {id, title, number: right} = column;
    const order = column !== sorted ? 'none'
      : state.descending ? 'descending' : 'ascending';
    const button = make('button', {type: 'button', 'data-sort': id}, title);
    button.addEventListener('click', () => sortBy(column));
    return make('th', {scope: 'col', 'aria-sort': order,
      class: right ? 'number' : undefined}, button);
  }));
  get('table').tHead.replaceChildren(row);
  if (focused) row.querySelector(`[data-sort="${focused}"]`)?.focus();
  get('sort').replaceChildren(...list.map(({id, title}) =>
    make('option', {value: id, selected: id === sorted.id}, title)));
}

function sortBy({id, descends = false}) {
  state.descending = state.sort === id ? !state.descending : descends;
  state.sort = id;
  state.page = 0;
  show();
}

function showOutcomes(fitting) {
  for (const button of get('outcomes').children) {
    const {label, test} = outcomes[button.dataset.outcome];
    const count = fitting.filter(({said}) => test(said)).length;
    button.replaceChildren(label(), make('b', {}, number(count)));
    button.setAttribute('aria-pressed',
      String(button.dataset.outcome === state.outcome));
  }
}

function options(select, pairs, chosen) {
  select.append(...pairs.map(([value, text]) =>
    make('option', {value, selected: value === chosen}, text)));
}

function control(id, event, change) {
  get(id).addEventListener(event, ({target}) => {
    change(target);
    state.page = 0;
    show();
  });
}

function turn(step) {
  state.page += step;
  show();
  get('questions').scrollIntoView();
}

function setUp() {
  const columnOptions = data.columns.map((name, i) => [String(i), name]);
  options(get('first'), columnOptions, String(state.first));
  options(get('second'), columnOptions, String(state.second));
  options(get('dataset'), [['', 'all'],
    ...data.numbers.map(([name]) => [name, name])], '');
  get('pair').hidden = !data.pair.length;
  get('all-columns').checked = state.allColumns;
  for (const [id, {pair}] of Object.entries(outcomes)) {
    if (pair && !data.pair.length) continue;
    const button = make('button', {type: 'button', 'data-outcome': id});
    button.addEventListener('click', () => {
      state.outcome = id;
      state.page = 0;
      show();
    });
    get('outcomes').append(button);
  }
  control('first', 'change', ({value}) => { state.first = Number(value); });
  control('second', 'change', ({value}) => { state.second = Number(value); });
  control('all-columns', 'change', ({checked}) => {
    state.allColumns = checked;
  });
  control('dataset', 'change', ({value}) => { state.dataset = value; });
  control('search', 'input', ({value}) => { state.search = value; });
  get('sort').addEventListener('change', ({target}) => sortBy(
    columns().find(({id}) => id === target.value)));
  get('previous').addEventListener('click', () => turn(-1));
  get('next').addEventListener('click', () => turn(1));
  if (questions.length < data.total) {
    const parts = data.numbers.map(([name, shown, all]) =>
      `${name} ${number(shown)} of ${number(all)}`);
    get('cut').hidden = false;
    get('cut').textContent = `Only ${number(questions.length)} of ` +
      `${number(data.total)} questions are in this page (${parts.join(', ')}` +
      '), the first of each dataset. The counts below are of these; the ' +
      'tables above are of all. All answers are in predictions/.';
  }
}

showReport();
setUp();
show();
})();
