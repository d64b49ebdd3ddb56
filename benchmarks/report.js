"use strict";

// Tables whose heads are buttons sort by them; a field above hides the rows that lack its words.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined) return a.cells[column].textContent.localeCompare(b.cells[column].textContent) * (down ? -1 : 1);
        if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured comes last either way
        return (Number(x) - Number(y)) * (down ? -1 : 1);
      });
      body.append(...rows);
    });
  });
  const field = document.querySelector(`input[data-filters="${table.id}"]`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
