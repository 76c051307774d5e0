// Shows photographs as soon as they are chosen, dragged or pasted. Without it all forms work alike.
'use strict';

const message = document.getElementById('status');

function show(input) {
  const preview = input.closest('fieldset').querySelector('.preview');
  if (preview.src) URL.revokeObjectURL(preview.src);
  const file = input.files[0];
  preview.hidden = !file;
  if (!file) return;
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name;
  preview.onerror = () => { preview.hidden = true; };  // a kind that the browser can't draw
  message.textContent = `${file.name} is chosen.`;
}

function give(input, file) {
  const files = new DataTransfer();
  files.items.add(file);
  input.files = files.files;
  show(input);
}

const inputs = [...document.querySelectorAll('input[type="file"]')];
for (const input of inputs) {
  const place = input.closest('fieldset');
  input.addEventListener('change', () => show(input));
  place.addEventListener('dragover', event => { event.preventDefault(); place.classList.add('over'); });
  place.addEventListener('dragleave', () => place.classList.remove('over'));
  place.addEventListener('drop', event => {
    event.preventDefault();
    place.classList.remove('over');
    if (event.dataTransfer.files.length) give(input, event.dataTransfer.files[0]);
  });
  show(input);
}

document.addEventListener('paste', event => {
  if (!inputs.length) return;
  const file = [...event.clipboardData.files].find(one => one.type.startsWith('image/'));
  if (file) give(inputs.find(input => !input.files.length) || inputs[inputs.length - 1], file);
});

if (inputs.length) document.querySelector('form').addEventListener('submit', () => {
  message.textContent = 'Comparing…';
});

const group = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
const first = document.getElementById('answer') || group;
if (first) first.focus();  // so that a screen reader begins with it
