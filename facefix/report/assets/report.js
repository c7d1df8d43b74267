"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("photos");
  const control = (id) => document.getElementById(id);
  const VERDICTS = ["failed", "flagged", "kept", "restored"];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function image(file, alt, slot) {
    return element("img", { src: `thumbs/${file}`, alt, slot, loading: "lazy", decoding: "async", draggable: "false" });
  }

  function slideWithKeys(slider) {
    const say = () => slider.setAttribute("aria-valuenow", Math.round(slider.value));
    const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
    slider.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      slider.value = Math.min(100, Math.max(0, slider.value + step * (event.shiftKey ? 5 : 1)));
      say();
    });
    slider.addEventListener("slide", say);
    say();
  }

  function fit(picture, photo) {
    picture.style.aspectRatio = `${photo.width} / ${photo.height}`;
    picture.style.width = `min(100%, ${(26 * photo.width / photo.height).toFixed(2)}rem)`;
  }

  function comparison(photo) {
    const holder = element("div", { class: "compare" });
    const before = photo.before ?? photo.after;
    const after = photo.after ?? photo.before;
    if (!before) {
      holder.append(element("p", { class: "missing" }, photo.why || "no picture could be made of this file"));
      return holder;
    }
    if (before === after) {
      const only = image(before, photo.name);
      fit(only, photo);
      holder.append(only, element("span", { class: "tag before", "aria-hidden": "true" }, "unchanged"));
      return holder;
    }
    const slider = element("img-comparison-slider", {
      value: 50, keyboard: "disabled", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100,
      "aria-label": `${photo.name}: share of the picture that shows it before`,
    }, image(before, `${photo.name}, before`, "first"), image(after, `${photo.name}, after`, "second"),
    element("div", { class: "handle", slot: "handle", "aria-hidden": "true" }, "‹ ›"));
    fit(slider, photo);
    slideWithKeys(slider);
    holder.append(slider, element("span", { class: "tag before", "aria-hidden": "true" }, "before"),
      element("span", { class: "tag after", "aria-hidden": "true" }, "after"));
    return holder;
  }

  const number = (value) => value === null ? "–" : value.toFixed(3);

  function similarity(face) {
    const line = element("div", { class: "numbers" });
    const parts = [];
    if (face.before !== null || face.after !== null) {
      parts.push(["similarity ", element("b", {}, number(face.before)), " → ", element("b", {}, number(face.after))]);
    }
    if (face.model !== null) parts.push([data.models[face.model]]);
    if (face.seconds !== null) parts.push([`${face.seconds.toFixed(1)} s`]);
    parts.forEach((part, place) => line.append(...(place ? [" · "] : []), ...part));
    if (face.why) line.append(element("div", {}, face.why));
    return line;
  }

  function references(face) {
    if (!face.references.length) return null;
    const list = element("ul", { class: "references" });
    for (const use of face.references) {
      const { thumb, name, why } = data.references[use];
      list.append(element("li", {}, thumb && image(thumb, ""), element("span", {},
        element("bdi", {}, name), element("div", { class: "why" }, why))));
    }
    const count = face.references.length;
    return element("details", {}, element("summary", {}, `${count} reference${count === 1 ? "" : "s"}`), list);
  }

  function faceRow(face) {
    const person = face.person === null ? "nobody known" : data.people[face.person];
    const pair = element("div", { class: "pair" });
    if (face.thumbBefore) pair.append(image(face.thumbBefore, `${person}, before`));
    if (face.thumbAfter && face.thumbAfter !== face.thumbBefore) pair.append(image(face.thumbAfter, `${person}, after`));
    const head = element("div", {}, element("bdi", { class: "who" }, person),
      element("span", { class: `verdict ${face.verdict}` }, face.verdict));
    return element("li", { class: "face" }, pair, head, similarity(face), references(face));
  }

  function fill(shell) {
    const photo = shell.photo;
    const meta = element("p", { class: "meta" }, photo.status);
    if (photo.why && photo.before) meta.append(` · ${photo.why}`);
    if (photo.output) meta.append(" · ", element("a", { href: photo.output }, "open the result"));
    if (photo.source) meta.append(" · ", element("a", { href: photo.source }, "open the original"));
    const faces = element("ul", { class: "faces" }, ...visibleFaces(photo).map(faceRow));
    if (faces.childElementCount > 3) faces.tabIndex = 0;
    shell.replaceChildren(comparison(photo), element("h2", {}, element("bdi", {}, photo.name)), meta, faces);
    shell.style.minHeight = "";
    shell.filled = true;
  }

  function empty(shell, height) {
    if (!shell.filled || shell.contains(document.activeElement)) return;
    shell.style.minHeight = `${height}px`;
    shell.replaceChildren();
    shell.filled = false;
  }

  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting && !target.filled) fill(target);
  }, { rootMargin: "1200px" });
  const far = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting, boundingClientRect } of entries) {
      if (!isIntersecting) empty(target, boundingClientRect.height);
    }
  }, { rootMargin: "5000px" });

  const chosen = { person: null, verdict: "", search: "" };
  const visibleFaces = (photo) => photo.faces.filter((face) => chosen.person === null || face.person === chosen.person);

  function matches(photo) {
    if (chosen.search && !photo.name.toLowerCase().includes(chosen.search)) return false;
    if (chosen.person === null && !chosen.verdict) return true;
    return photo.faces.some((face) => (chosen.person === null || face.person === chosen.person)
      && (!chosen.verdict || face.verdict === chosen.verdict));
  }

  const largest = (values) => values.reduce((most, value) => value > most ? value : most, -Infinity);
  const gained = (face) => face.before === null || face.after === null ? -Infinity : face.after - face.before;
  const descending = (key) => (a, b) => (b[key] === a[key] ? 0 : b[key] - a[key]) || a.place - b.place;
  const orders = {
    album: (a, b) => a.place - b.place,
    likeness: descending("gained"),
    change: descending("changed"),
    verdict: (a, b) => a.worst - b.worst || a.place - b.place,
    name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.place - b.place),
  };

  const shells = data.photos.map((photo, place) => {
    photo.place = place;
    photo.gained = largest(photo.faces.map(gained));
    photo.changed = largest(photo.faces.map((face) => face.change ?? -Infinity));
    const ranks = photo.faces.map((face) => VERDICTS.indexOf(face.verdict));
    photo.worst = photo.status === "failed" ? -1 : ranks.length ? Math.min(...ranks) : VERDICTS.length;
    const shell = element("article", { class: "photo", "aria-label": photo.name, "data-place": place, tabindex: -1 });
    shell.photo = photo;
    shell.filled = false;
    return shell;
  });

  function show() {
    chosen.person = control("person").value === "" ? null : Number(control("person").value);
    chosen.verdict = control("verdict").value;
    chosen.search = control("search").value.trim().toLowerCase();
    const shown = shells.filter((shell) => matches(shell.photo));
    const order = orders[control("sort").value];
    shown.sort((a, b) => order(a.photo, b.photo));
    if (control("reverse").checked) shown.reverse();
    near.disconnect();
    far.disconnect();
    for (const shell of shells) {
      shell.filled = false;
      shell.replaceChildren();
      shell.style.minHeight = `${25 + 8 * Math.min(4, visibleFaces(shell.photo).length)}rem`;
    }
    main.replaceChildren(...shown);
    for (const shell of shown) { near.observe(shell); far.observe(shell); }
    control("shown").value = `${shown.length} of ${shells.length} photos`;
    if (!shown.length) main.append(element("p", { class: "note" }, "No photo matches."));
  }

  function step(by) {
    const cards = [...main.querySelectorAll(".photo")];
    const top = control("controls").getBoundingClientRect().bottom + 24;
    const here = document.activeElement.closest?.(".photo");
    let at = here ? cards.indexOf(here) : cards.findIndex((card) => card.getBoundingClientRect().bottom > top) - (by > 0 ? 1 : 0);
    at = Math.min(cards.length - 1, Math.max(0, at + by));
    if (!cards[at]) return;
    if (!cards[at].filled) fill(cards[at]);
    cards[at].scrollIntoView({ block: "start" });
    (cards[at].querySelector("img-comparison-slider") ?? cards[at]).focus({ preventScroll: true });
  }

  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
    if (typing || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  control("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["sort", "reverse", "person", "verdict"]) control(id).addEventListener("change", show);
  control("search").addEventListener("input", show);
  show();
})();
