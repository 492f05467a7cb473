"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("live");

  // Colours: the system's, unless the reader chose, here (kept) or by #light or #dark in the address.
  const buttons = [...document.querySelectorAll("[data-theme-choice]")];
  const remembered = () => {
    const asked = location.hash.slice(1);
    if (asked === "dark" || asked === "light") return asked;
    try { return localStorage.getItem("tutelage-theme") || "auto"; } catch { return "auto"; }
  };
  let choice = remembered();
  const paint = () => {
    if (choice === "auto") delete root.dataset.theme; else root.dataset.theme = choice;
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === choice));
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      choice = button.dataset.themeChoice;
      try { localStorage.setItem("tutelage-theme", choice); } catch { /* private window: not kept */ }
      paint();
    });
  }
  window.addEventListener("hashchange", () => {
    if (["#dark", "#light"].includes(location.hash)) { choice = remembered(); paint(); }
  });
  paint();

  // Paper shows everything.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of folded) each.open = false;
  });

  // One read-out for charts and tokens; its text never becomes HTML.
  const tip = document.querySelector(".tip");
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const showTip = (children, x, y) => {
    tip.replaceChildren(...children);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), window.innerWidth - box.width - 8);
    const below = y + 18;
    const top = below + box.height > window.innerHeight - 8 ? y - box.height - 14 : below;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const line = (left, right, role) => {
    const row = make("div", "line");
    const name = make("span", "name");
    if (role) {
      const dot = make("span", "dot");
      dot.style.setProperty("--c", `var(--c-${role})`);
      name.append(dot);
    }
    name.append(left);
    row.append(name, make("span", "", right));
    return row;
  };
  const nats = (value) => (value === null || value === undefined ? "—" : `${value.toFixed(value < 10 ? 3 : 1)}\u00a0nats`);
  const share = (value) => (value === null || value === undefined ? "—" : `${(100 * value).toFixed(value < 0.001 ? 3 : 1)}\u00a0%`);
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size !== 0 && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  // Charts
  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot");
    const data = JSON.parse(figure.querySelector(".chart-data").textContent);
    const scale = data.log ? Math.log : (value) => value;
    const across = (x) => (x - data.x[0]) / (data.x[1] - data.x[0]);
    const up = (y) => (scale(y) - scale(data.y[0])) / (scale(data.y[1]) - scale(data.y[0]));
    const moving = data.lines.filter((each) => each.x.length > 0);
    const places = [...new Set(moving.flatMap((each) => each.x))].sort((a, b) => a - b);
    let at = -1;
    const nearest = (values, x) => {
      let low = 0;
      let high = values.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (values[middle] <= x) low = middle; else high = middle;
      }
      return Math.abs(values[low] - x) <= Math.abs(values[high] - x) ? low : high;
    };
    const clear = () => {
      for (const old of plot.querySelectorAll(".cursor, .mark")) old.remove();
      hideTip();
    };
    const show = (index) => {
      clear();
      at = Math.min(Math.max(0, index), places.length - 1);
      const x = places[at];
      const cursor = make("div", "cursor");
      cursor.style.left = `${100 * across(x)}%`;
      plot.append(cursor);
      const rows = [make("b", "", `${data.xLabel} ${short(x)}`)];
      for (const each of moving) {
        const here = nearest(each.x, x);
        const y = each.y[here];
        // Beyond its end a line has nothing to say.
        const outside = x < each.x[0] || x > each.x[each.x.length - 1];
        if (y === null || (outside && Math.abs(across(each.x[here]) - across(x)) > 0.02)) continue;
        const mark = make("div", "mark");
        mark.style.setProperty("--c", `var(--c-${each.role})`);
        mark.style.left = `${100 * across(each.x[here])}%`;
        mark.style.bottom = `${100 * up(y)}%`;
        plot.append(mark);
        rows.push(line(each.name, data.unit === "percent" ? share(y) : short(y), each.role));
      }
      const box = plot.getBoundingClientRect();
      showTip(rows, box.left + box.width * across(x), box.top + box.height * 0.35);
    };
    if (places.length === 0) continue;
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const x = data.x[0] + ((event.clientX - box.left) / box.width) * (data.x[1] - data.x[0]);
      show(nearest(places, x));
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const pace = Math.max(1, Math.round(places.length / 40));
      const moves = { ArrowRight: at + pace, ArrowLeft: at - pace, Home: 0, End: places.length - 1 };
      if (event.key === "Escape") clear();
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key]);
    });
  }

  // Tokens
  const section = document.querySelector(".token-section");
  for (const radio of document.querySelectorAll("input[name=when]")) {
    radio.addEventListener("change", () => {
      for (const view of ["before", "after", "change"]) {
        section.classList.toggle(`${view}-view`, view === radio.value);
      }
      hideTip();
    });
    if (radio.checked) radio.dispatchEvent(new Event("change"));
  }
  const isBefore = () => section.classList.contains("before-view");
  for (const article of document.querySelectorAll(".row")) {
    const text = article.querySelector(".tokens");
    const tokens = [...text.querySelectorAll(".t")];
    const data = JSON.parse(article.querySelector(".token-data").textContent);
    let at = -1;
    const clear = () => {
      for (const each of text.querySelectorAll(".here")) each.classList.remove("here");
      hideTip();
    };
    const show = (index) => {
      clear();
      at = Math.min(Math.max(0, index), tokens.length - 1);
      const token = tokens[at];
      token.classList.add("here");
      const now = (isBefore() ? data.before : data.after) || data.after || data.before;
      if (!now) return;
      const chip = (label) => make("code", "chip", label);
      const title = make("div");
      title.append("Token ", chip(token.textContent.replace(/\n/g, "").replace(/^ +| +$/g, (run) => "␣".repeat(run.length))));
      const says = (who, top, p) => {
        const row = make("div");
        row.append(`${who} says `, chip(top), `, and gives this token ${share(p)}`);
        return row;
      };
      const rows = [title, line("Forward KL", nats(now.kl[at]))];
      if (data.before && data.after) {
        rows.push(isBefore() ? line("after", nats(data.after.kl[at])) : line("before", nats(data.before.kl[at])));
      }
      rows.push(says("Teacher", now.tt[at], now.tp[at]), says("Student", now.st[at], now.sp[at]));
      const box = token.getClientRects()[0] || text.getBoundingClientRect();
      showTip(rows, box.left, box.bottom - 10);
    };
    const indexOf = (event) => tokens.indexOf(event.target.closest(".t"));
    text.addEventListener("pointerover", (event) => {
      const index = indexOf(event);
      if (index >= 0) show(index); else clear();
    });
    text.addEventListener("click", (event) => {
      const index = indexOf(event);
      if (index >= 0) show(index);
    });
    text.addEventListener("pointerleave", clear);
    text.addEventListener("blur", clear);
    text.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 };
      if (event.key === "Escape") clear();
      if (!(event.key in moves) || tokens.length === 0) return;
      event.preventDefault();
      show(moves[event.key]);
    });
  }
  window.addEventListener("scroll", hideTip, { passive: true });
})();
