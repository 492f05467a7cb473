// Rides along in a copy of a page: uses it as a reader would, and posts what it found.
"use strict";
(() => {
  const found = { name: NAME, errors: [], seen: [] };
  window.addEventListener("error", (event) => found.errors.push(String(event.message)));
  window.addEventListener("unhandledrejection", (event) => found.errors.push(String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) =>
    found.errors.push(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  for (const level of ["error", "warn"]) {
    console[level] = (...words) => found.errors.push(words.join(" "));
  }
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colour, below) => {
    canvas.fillStyle = `rgb(${below.join(",")})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const backdrop = (element) => {
    const chain = [];
    for (let each = element; each; each = each.parentElement) chain.unshift(each);
    return chain.reduce((below, each) => over(getComputedStyle(each).backgroundColor, below), [255, 255, 255]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (element) => {
    const below = backdrop(element);
    const pair = [light(over(getComputedStyle(element).color, below)), light(below)].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  };
  const dimmest = () => {
    let worst = { ratio: 99 };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.textContent.trim() || element.closest("script, .unseen, .skip")) continue;
      if (!element.checkVisibility() || element.getClientRects().length === 0) continue;
      const ratio = contrast(element);
      if (ratio < worst.ratio) {
        worst = { ratio, text: walker.currentNode.textContent.trim().slice(0, 40), at: element.className };
      }
    }
    return worst;
  };
  const tip = () => document.querySelector(".tip");
  const note = (what) => found.seen.push([what, tip().hidden ? "" : tip().textContent]);
  const wide = () => document.documentElement.scrollWidth - document.documentElement.clientWidth;

  window.addEventListener("load", () => {
    try {
      for (const each of document.querySelectorAll("details")) each.open = true;
      found.width = window.innerWidth;
      found.overflow = wide();
      found.overflowing = [...document.querySelectorAll("body *")]
        .filter((each) => each.getBoundingClientRect().right > window.innerWidth + 1 && !each.closest(".scroll, pre, nav, .skip"))
        .slice(0, 3).map((each) => `${each.tagName}.${each.className}`);
      found.dimmest = dimmest();
      found.scheme = getComputedStyle(document.documentElement).colorScheme;
      for (const plot of [...document.querySelectorAll(".plot")].filter((each) => each.checkVisibility())) {
        const box = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 0.7 * box.width, clientY: box.top + 5 }));
        note("chart");
        plot.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
        plot.dispatchEvent(new PointerEvent("pointerleave"));
      }
      for (const radio of document.querySelectorAll("input[type=radio]")) {
        radio.click();
        found.dimmest = [found.dimmest, dimmest()].sort((a, b) => a.ratio - b.ratio)[0];
        found.overflow = Math.max(found.overflow, wide());
        for (const text of document.querySelectorAll(".tokens")) {
          text.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
          note(`token ${radio.value}`);
        }
      }
      for (const text of document.querySelectorAll(".tokens")) {
        text.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        note("token");
        text.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
      }
      window.dispatchEvent(new Event("beforeprint"));
      window.dispatchEvent(new Event("afterprint"));
      found.hidden = tip().hidden;
      const dark = document.querySelector("[data-theme-choice=dark]");
      if (dark.checkVisibility()) {
        dark.click();
        found.chosen = getComputedStyle(document.documentElement).colorScheme;
      }
      found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
      found.images = document.images.length;
      found.pwned = typeof window.pwned !== "undefined";
    } catch (error) {
      found.errors.push(`probe: ${error.stack}`);
    }
    parent.postMessage(JSON.stringify(found), "*");
  });
})();
